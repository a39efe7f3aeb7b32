"""Many prompts: shards in, Parquet parts out, resumed after whatever ended a run.

- The unit of work is a shard: a file of prompts (Parquet) or of activations (safetensors). What is made of it, its
  part, depends on the shard and on the run's settings, and on nothing else.
- A part is written aside, flushed to disk and renamed: it is there whole or not at all. There is no other state,
  neither journal nor lock: to resume is to run again, and shards whose part is there are skipped.
- Who has the shards analysed does not matter: a loop, processes, tasks of a cluster. Two that take the same shard write
  the same part twice.

`run` is the public function; `settings`, `inputs`, `run_file`: what a run is. `shard`, `prompts`, `activations`,
`models`, `columns`: what is made of a shard. `processes` and `on_ray` have many shards analysed.
"""
