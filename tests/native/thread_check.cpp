// Calls the library from several threads at once and with teams of several threads, for ThreadSanitizer: no Python,
// whose own threads it does not understand. `.ci/sanitize` compiles this together with csrc/*/*.cpp and -DESS_STD_THREADS.
//
// A family of kernels adds a function to `checks`: it calls the family with so many threads on data large enough that every
// thread gets work, and returns the answer's numbers. They must have the same bits for any number of threads, and from
// whichever thread they are asked.

#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "../../csrc/base/threads.h"
#include "../../csrc/include/ess_native.h"

namespace {

struct Check {
    const char *name;
    std::vector<double> (*answer)(int32_t threads, int32_t level);
};

// a team that shares tasks: each task is done once
std::vector<double> tasks(int32_t threads, int32_t) {
    std::vector<double> done(1000, 0.0);
    ess::TaskCounter counter(static_cast<int64_t>(done.size()));
    ess::team(threads, [&](int32_t) {
        for (int64_t task; (task = counter.take()) >= 0;) done[static_cast<size_t>(task)] += static_cast<double>(task);
    });
    return done;
}

// the small elimination keeps no state
std::vector<double> positive_pivots(int32_t, int32_t) {
    const int64_t n = 24;
    std::vector<double> a(static_cast<size_t>(n * n)), work(a.size());
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) a[static_cast<size_t>(i * n + j)] = i == j ? double(i % 3) - 0.75 : 1e-3;
    }
    int64_t count = -1;
    int32_t code = ess_positive_pivots(n, a.data(), n, work.data(), &count);
    return {static_cast<double>(code), static_cast<double>(count)};
}

// doubles on a cache line
class Array {
  public:
    explicit Array(int64_t count) : count_(count), data_(static_cast<double *>(std::aligned_alloc(64, bytes()))) {
        for (int64_t i = 0; i < count; i++) data_[i] = 0;
    }
    ~Array() { std::free(data_); }
    Array(const Array &) = delete;
    Array &operator=(const Array &) = delete;
    double *data() const { return data_; }
    int64_t size() const { return count_; }
    void append_to(std::vector<double> &numbers) const { numbers.insert(numbers.end(), data_, data_ + count_); }

  private:
    size_t bytes() const { return (static_cast<size_t>(count_) * sizeof(double) + 63) / 64 * 64; }
    int64_t count_;
    double *data_;
};

// the same numbers between -1 and 1 every time
void fill(Array &array, uint64_t seed) {
    for (int64_t i = 0; i < array.size(); i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        array.data()[i] = static_cast<double>(static_cast<int64_t>(seed) >> 11) * 0x1p-52;
    }
}

// Does a job with the workspace that it asks for; ends the program where it fails.
template <class Job>
void run_job(int32_t threads, int32_t level, int64_t (*query)(const ess_run *, const Job *),
             int32_t (*call)(const ess_run *, const Job *), const Job &job) {
    ess_run run = {threads, level, nullptr, 0};
    run.workspace_bytes = query(&run, &job);
    int32_t code = run.workspace_bytes < 0 ? static_cast<int32_t>(-run.workspace_bytes) : ESS_OK;
    Array workspace(code == ESS_OK ? run.workspace_bytes / 8 + 8 : 1);
    run.workspace = workspace.data();
    if (code == ESS_OK) code = call(&run, &job);
    if (code != ESS_OK) {
        std::printf("refused: %s\n", ess_error_string(code));
        std::exit(2);
    }
}

// RUN(X, fields of ess_X_job in their order), where `threads` and `level` say how
#define RUN(X, ...) run_job(threads, level, ess_##X##_workspace, ess_##X, ess_##X##_job{__VA_ARGS__})

// three heads of a gated recurrence: parts, counts at two tolerances, entropy, roots and their products; counts and
// entropy once more while parts are made; of transitions that are diagonal, or have a rank-one term
template <int32_t TRANSITIONS> std::vector<double> recurrence(int32_t threads, int32_t level) {
    constexpr bool rank_one = TRANSITIONS == ESS_RANK_ONE;
    const int64_t heads = 3, length = 150, n = 16, c = 16, blocks = (length + c - 1) / c, tolerances = 2;
    Array read(heads * length * n), write(read.size()), gate(read.size()), units(heads);
    fill(read, 1);
    fill(write, 2);
    fill(gate, 3);
    Array lookup(read.size()), update(read.size());
    fill(lookup, 5);
    fill(update, 6);
    for (int64_t i = 0; i < lookup.size(); i++) lookup.data()[i] *= 0.1; // no transition grows much
    const double *reads[heads], *writes[heads], *gates[heads], *lookups[heads], *updates[heads];
    for (int64_t h = 0; h < heads; h++) {
        lookups[h] = lookup.data() + h * length * n;
        updates[h] = update.data() + h * length * n;
        reads[h] = read.data() + h * length * n;
        writes[h] = write.data() + h * length * n;
        gates[h] = gate.data() + h * length * n;
        units.data()[h] = 1;
    }
    ess_tokens tokens = {};
    tokens.heads = heads;
    tokens.length = length;
    tokens.states = n;
    tokens.read = reads;
    tokens.write = writes;
    tokens.gate = gates;
    tokens.read_stride = tokens.write_stride = tokens.gate_stride = n;
    tokens.read_unit = tokens.write_unit = units.data();
    if (rank_one) {
        tokens.lookup = lookups;
        tokens.update = updates;
        tokens.lookup_stride = tokens.update_stride = n;
    }

    const int64_t each = heads * blocks;
    Array X(each * n * c), Z(each * n * c), Y(each * c * c), Phi(each * n * (rank_one ? n : 1)), F(each * n * n),
        Q(each * n * n);
    ess_recurrence parts = {heads,    blocks,   n,          c,        TRANSITIONS, 0,      X.data(),
                            Z.data(), Y.data(), Phi.data(), F.data(), Q.data(),    nullptr};
    std::vector<double> answer;
    const int64_t span = 8;
    Array lost(heads * ((length + span - 1) / span));
    if (!rank_one) RUN(tokens_lost, &tokens, span, lost.data());
    lost.append_to(answer);
    Array tau(each * tolerances), counts(heads * tolerances * length), growth(counts.size()), least(counts.size());
    for (int64_t i = 0; i < tau.size(); i++) tau.data()[i] = i / blocks % tolerances ? 1e-3 : 0.3;
    std::vector<uint8_t> wanted(static_cast<size_t>(each * tolerances), 1);
    const ess_recurrence_parts_job making = {&parts, &tokens, nullptr, 0};
    for (bool on_the_way : {false, true}) {
        const ess_tokens *source = on_the_way ? &tokens : nullptr;
        if (!on_the_way) RUN(recurrence_parts, making);
        RUN(recurrence_counts, &parts, source, length, tolerances, tau.data(), wanted.data(), counts.data(),
            growth.data(), least.data());
        counts.append_to(answer);
        growth.append_to(answer);
        least.append_to(answer);

        const double nodes[] = {1e-12, 1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1, 10};
        ess_quadrature quadrature = {8, nodes, nodes, nodes, 1e-7, 1e-7, 1e6, 1e7};
        Array total(heads * length), mixed(heads * length), rounding(heads * blocks), unit(heads * blocks);
        RUN(recurrence_entropy, &parts, source, length, nullptr, &quadrature, wanted.data(), total.data(), mixed.data(),
            rounding.data(), unit.data());
        total.append_to(answer);
        mixed.append_to(answer);
        unit.append_to(answer);
        F.append_to(answer);
    }

    Array roots(each * n * n), products(6 * n * n);
    const int64_t of_heads[] = {0, 0, 1, 1, 2, 2}, positions[] = {1, 70, 20, 149, 16, 17};
    const ess_recurrence_observe_roots_job root_job = {making, roots.data()};
    RUN(recurrence_observe_roots, root_job);
    RUN(recurrence_root_products, root_job, 6, of_heads, positions, products.data());
    products.append_to(answer);
    Array outsides(each * ess_recurrence_outside_size(n, c));
    std::vector<uint8_t> made(static_cast<size_t>(each), 0);
    const ess_recurrence_counts_job counting = {&parts,        nullptr,       length,        tolerances,  tau.data(),
                                                wanted.data(), counts.data(), growth.data(), least.data()};
    RUN(recurrence_unsquared_counts, counting, roots.data(), outsides.data(), made.data());
    counts.append_to(answer);
    growth.append_to(answer);
    least.append_to(answer);
    return answer;
}

// small matrices: their values, and counts at two tolerances
std::vector<double> spectra(int32_t threads, int32_t level) {
    const int64_t batch = 45, n = 20, tolerances = 2;
    Array A(batch * n * n), values(batch * n), tau(batch * tolerances);
    fill(A, 4);
    for (int64_t i = 0; i < tau.size(); i++) tau.data()[i] = i % tolerances ? 0.5 : 2.0;
    std::vector<int64_t> counts(static_cast<size_t>(batch * tolerances), -7);
    ess_spectra_job job = {};
    job.element_bytes = 8;
    job.batch = batch;
    job.left = {A.data(), n, n, n * n, n, 1};
    job.right = {nullptr, -1, 0, 0, 0, 0};
    job.values = values.data();
    job.tolerances = tolerances;
    job.tau = tau.data();
    job.counts = counts.data();
    std::vector<double> answer;
    RUN(spectra, job);
    values.append_to(answer);
    for (int64_t count : counts) answer.push_back(static_cast<double>(count));
    return answer;
}

// dense operators: one, with fewer nodes than threads, and several
std::vector<double> dense(int32_t threads, int32_t level) {
    std::vector<double> answer;
    const int64_t lengths[] = {600, 150}, several[] = {1, 5};
    for (int kind = 0; kind < 2; kind++) {
        const int64_t L = lengths[kind], heads = several[kind], numbers = heads * L, items = heads;
        const int64_t stride = (L + ESS_ATTENTION_TILE - 1) / ESS_ATTENTION_TILE * ESS_ATTENTION_TILE;
        Array q(numbers * 4), k(numbers * 4), T(heads * stride * stride), products(heads * ess_matrix_products_size(L));
        Array value(numbers), growth(numbers), least(numbers), norm(heads), squares(numbers), largest(heads);
        fill(q, 1);
        fill(k, 2);
        RUN(attention_rows, heads, L, 4, q.data(), k.data(), nullptr, 1.0, 0.0, 0, 0, L, T.data(), stride);
        const std::vector<double> scale(static_cast<size_t>(heads), 1.0), shift(static_cast<size_t>(heads), 0.01);
        const std::vector<uint8_t> wanted(static_cast<size_t>(numbers), 1);
        std::vector<int64_t> head;
        for (int64_t h = 0; h < heads; h++) head.push_back(h);
        const ess_matrix matrix = {heads, L, T.data(), stride, stride * stride, scale.data(), ESS_MATRIX_WHOLE, 0};
        RUN(matrix_products, &matrix, products.data());
        for (int32_t definite : {0, 1}) {
            RUN(matrix_staircase, &matrix, products.data(), items, head.data(), shift.data(), definite, 0,
                wanted.data(), value.data(), growth.data(), least.data());
            value.append_to(answer);
        }
        // the same by parts that lie in the whole
        const int64_t middle = ess_matrix_middle(L);
        const double *last_rows = T.data() + middle * stride;
        const double *starts[] = {last_rows, T.data(), last_rows + middle};
        for (int32_t part = ESS_MATRIX_CORNER; part <= ESS_MATRIX_LAST; part++) {
            const ess_matrix some = {heads, L, starts[part - 1], stride, stride * stride, scale.data(), part, 0};
            RUN(matrix_products, &some, products.data());
            if (part == ESS_MATRIX_CORNER) continue;
            RUN(matrix_staircase, &some, products.data(), items, head.data(), shift.data(), 0, 0, wanted.data(),
                value.data(), growth.data(), least.data());
            value.append_to(answer);
        }
        RUN(matrix_norm, &matrix, 3, norm.data(), squares.data());
        RUN(matrix_largest, &matrix, largest.data());
        for (const Array *array : {&growth, &least, &norm, &squares, &largest}) array->append_to(answer);
    }
    return answer;
}

// forty heads of small states that share their reads and writes: counts at two tolerances and entropy
std::vector<double> lanes(int32_t threads, int32_t level) {
    const int64_t heads = 40, length = 45, n = 9, tolerances = 2, blocks = 6, entropy_blocks = 12;
    Array read(length * n), write(length * n), gate(heads * length), units(heads);
    fill(read, 5);
    fill(write, 6);
    fill(gate, 7);
    std::vector<const double *> reads, writes, gates;
    for (int64_t h = 0; h < heads; h++) {
        reads.push_back(read.data());
        writes.push_back(write.data());
        gates.push_back(gate.data() + h * length);
        units.data()[h] = 1;
    }
    ess_tokens tokens = {};
    tokens.heads = heads;
    tokens.length = length;
    tokens.states = n;
    tokens.read = reads.data();
    tokens.write = writes.data();
    tokens.gate = gates.data();
    tokens.read_stride = tokens.write_stride = n;
    tokens.gate_stride = tokens.gate_shared = 1;
    tokens.read_unit = tokens.write_unit = units.data();

    std::vector<double> answer;
    Array tau(heads * tolerances * blocks), value(heads * tolerances * length), growth(value.size());
    Array least(value.size());
    for (int64_t i = 0; i < tau.size(); i++) tau.data()[i] = i / blocks % tolerances ? 1e-3 : 0.3;
    std::vector<uint8_t> wanted(static_cast<size_t>(tau.size()), 1);
    RUN(lanes_counts, &tokens, tolerances, tau.data(), wanted.data(), value.data(), growth.data(), least.data());
    value.append_to(answer);
    growth.append_to(answer);
    least.append_to(answer);

    const double nodes[] = {1e-12, 1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1, 10};
    ess_quadrature quadrature = {8, nodes, nodes, nodes, 1e-7, 1e-7, 1e6, 1e7};
    Array cap(length), ess(heads * length), bound(heads * length), total(heads * length);
    for (int64_t i = 0; i < length; i++) cap.data()[i] = static_cast<double>(n);
    std::vector<uint8_t> asked(static_cast<size_t>(heads * entropy_blocks), 1);
    RUN(lanes_entropy, &tokens, &quadrature, asked.data(), cap.data(), ess.data(), bound.data(), total.data());
    ess.append_to(answer);
    bound.append_to(answer);
    total.append_to(answer);
    return answer;
}

// counts and entropies are judged
std::vector<double> judge(int32_t threads, int32_t level) {
    const int64_t heads = 37, tolerances = 3, length = 2011, group = 16, answers = tolerances * heads * (length - 1);
    Array value(heads * tolerances * length), growth(heads * tolerances * length), least(heads * tolerances * length);
    for (int64_t i = 0; i < heads * tolerances * length; i++) {
        value.data()[i] = static_cast<double>(i % 65);
        growth.data()[i] = std::ldexp(1.0, static_cast<int>(i % 40));
        least.data()[i] = std::ldexp(1.0, -static_cast<int>(i % 47));
    }
    const std::vector<uint8_t> possible(static_cast<size_t>(heads * tolerances), 1),
        asked(static_cast<size_t>(length), 1);
    std::vector<int64_t> counts(static_cast<size_t>(answers));
    std::vector<uint8_t> doubtful(counts.size());
    Array width(answers), cap(length), ess(heads * length), bound(heads * length);
    for (int64_t i = 0; i < length; i++) cap.data()[i] = 64;
    const int64_t blur_span = 8;
    Array blur(heads * tolerances * ((length + blur_span - 1) / blur_span));
    for (int64_t i = 0; i < blur.size(); i++) blur.data()[i] = std::ldexp(1.0, -static_cast<int>(i % 40));
    const ess_blur blurred = {blur.data(), blur_span};
    int64_t number = 0;
    RUN(judge_counts, heads, tolerances, length, DBL_EPSILON, 1e-7, 1e-9, 1e-2, 1e-5, blurred, value.data(),
        growth.data(), least.data(), possible.data(), asked.data(), counts.data(), width.data(), doubtful.data(),
        &number);
    const ess_quadrature quadrature = {0, nullptr, nullptr, nullptr, 1e-7, 1e-7, 1e6, 1e7};
    RUN(judge_entropy, heads, length, group, &quadrature, growth.data(), value.data(), least.data(), cap.data(),
        ess.data(), bound.data());
    std::vector<double> answer = {double(number)};
    answer.insert(answer.end(), doubtful.begin(), doubtful.end());
    const int64_t groups = (length + group - 1) / group;
    Array move(heads * tolerances * groups), sides(2 * heads * tolerances * length), growths(sides.size());
    for (int64_t i = 0; i < sides.size(); i++) sides.data()[i] = growths.data()[i] = static_cast<double>(i % 3);
    for (int32_t typical : {1, 0}) {
        RUN(group_widths, heads, tolerances, length, group, typical, 0, 1e-2, asked.data(), doubtful.data(),
            width.data(), move.data());
        move.append_to(answer);
        RUN(compare_counts, heads, tolerances, length, group, DBL_EPSILON, sides.data(), growths.data(), move.data(),
            blurred, counts.data(), width.data(), doubtful.data(), &number);
        answer.push_back(double(number));
        answer.insert(answer.end(), doubtful.begin(), doubtful.end());
    }
    answer.insert(answer.end(), counts.begin(), counts.end());
    width.append_to(answer);
    ess.append_to(answer);
    bound.append_to(answer);
    return answer;
}

const Check checks[] = {
    {"tasks of a team", tasks},
    {"positive pivots", positive_pivots},
    {"a recurrence", recurrence<ESS_DIAGONAL>},
    {"rank-one terms", recurrence<ESS_RANK_ONE>},
    {"small states in lanes", lanes},
    {"small matrices", spectra},
    {"judgements", judge},
    {"dense operators", dense},
};

bool same(const std::vector<double> &a, const std::vector<double> &b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// how many of a check's answers differ from that of one thread
int differing(const Check &check, int32_t level) {
    const std::vector<double> expected = check.answer(1, level);
    int wrong = 0;
    for (int32_t threads : {2, 3, 4}) wrong += !same(check.answer(threads, level), expected);
    // three callers at once, each with a team of two
    std::vector<std::vector<double>> found(3);
    std::vector<std::thread> callers;
    for (std::vector<double> &answer : found) callers.emplace_back([&] { answer = check.answer(2, level); });
    for (std::thread &caller : callers) caller.join();
    for (const std::vector<double> &answer : found) wrong += !same(answer, expected);
    return wrong;
}

} // namespace

int main() {
    int failed = 0;
    for (int32_t level : {ESS_LEVEL_BASELINE, ESS_LEVEL_AVX2, ESS_LEVEL_AVX512}) {
        const char *name = ess_level_name(level);
        if (!name) continue;
        for (const Check &check : checks) {
            int wrong = differing(check, level);
            std::printf("%-9s %-20s %s\n", name, check.name, wrong ? "DIFFERS" : "ok");
            failed += wrong;
        }
    }
    return failed != 0;
}
