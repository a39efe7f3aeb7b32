"""ESS during training: callbacks for the Trainer of transformers and for Lightning.

`ess_kernels.analysis.ESSCallback` and `ess_kernels.analysis.ESSLightningCallback` import what they need at first use.
"""
