// Plants NaN, entry by entry, in what the kernels reduce to a growth, a least row, a bound or a log-determinant, and asks
// whether everything that depends on the entry shows it, and nothing else does. Prints what was forgotten.
//
//     c++ -std=c++17 -O1 -fopenmp -DESS_VECTOR_BYTES=16 -Icsrc tests/attacks/lost_nan.cpp csrc/base/threads.cpp

#include <algorithm>
#include <cstdio>
#include <initializer_list>

#include "dispatch/headers.h"

#define ESS_LEVEL planted
#include "leaves/logdet.h"
#include "matrix/node.h"
#include "recurrence/counts.h"
#include "recurrence/entropy.h"
#include "recurrence/unsquared.h"

using namespace ess::ESS_LEVEL;
using namespace ess::ESS_LEVEL::dense;
using namespace ess::ESS_LEVEL::leaves;
using namespace ess::ESS_LEVEL::recurrence;

namespace {

constexpr int SIZE = 16, LANE = 1;
constexpr double NOT_A_NUMBER = __builtin_nan("");
int forgotten = 0;

void expect(bool right, const char *where, int i = 0, int j = 0, int s = 0) {
    if (!right && forgotten++ < 20) std::printf("%s: entry (%d, %d), position %d\n", where, i, j, s);
}

template <class X> void check_maxima(X x, X nothing) {
    expect(max(x, nothing) != max(x, nothing) && max(nothing, x) != max(nothing, x), "max");
    expect(min(x, nothing) != min(x, nothing) && min(nothing, x) != min(nothing, x), "min");
}

template <class T> void check_lanes() {
    for (int l = 0; l < width<T>; l++) {
        Vec<T> x = all(T(3));
        x[l] = static_cast<T>(NOT_A_NUMBER);
        expect(horizontal_max(x) != horizontal_max(x), "horizontal_max", l);
        expect(horizontal_min(x) != horizontal_min(x), "horizontal_min", l);
        expect(max(x, all(T(5)))[l] != max(x, all(T(5)))[l], "vector max", l);
        expect(max(all(T(5)), x)[l] != max(all(T(5)), x)[l], "vector max", l);
        expect(max(x, all(T(5)))[(l + 1) % width<T>] == 5, "neighbour of vector max", l);
    }
}

// A node of a leaf: R, K and C with pivots near -1 (counts) or 1 (log-determinants).
struct Node {
    static constexpr int LD = static_cast<int>(leaf_stride(SIZE));
    V R[SIZE * LD], K[SIZE * LD], C[SIZE * LD];
    V work[leaf_work(SIZE)], values[SIZE], growths[SIZE], leasts[SIZE];

    Node(int ld, double pivot) {
        for (int j = 0; j < SIZE; j++) {
            for (int i = 0; i < SIZE; i++) {
                const double x = 0.01 * ((7 * i + 3 * j) % 11 - 5), y = 0.01 * ((5 * i + 2 * j) % 13 - 6);
                R[j * ld + i] = all(i == j ? pivot : x);
                C[j * ld + i] = all(i == j ? pivot : y);
                K[j * ld + i] = all(x + y);
            }
        }
    }
};

// Which of the leaf's matrices has entry (i, j), and whether position s sees it.
enum Part { ROWS_PART, MIXED_PART, COLUMNS_PART };
bool sees(Part part, int i, int j, int s) {
    if (part == ROWS_PART) return i <= SIZE - 1 - s;           // i >= j, rows reversed
    if (part == MIXED_PART) return j <= SIZE - 1 - s && i < s; // column i, row j
    return i < s;                                              // i >= j
}

template <class Run> void plant_in_leaf(const char *where, int ld, double pivot, Run run) {
    for (Part part : {ROWS_PART, MIXED_PART, COLUMNS_PART}) {
        for (int j = 0; j < SIZE; j++) {
            for (int i = part == MIXED_PART ? 0 : j; i < (part == MIXED_PART ? SIZE - 1 - j : SIZE); i++) {
                Node node(ld, pivot);
                V *matrix = part == ROWS_PART ? node.R : part == MIXED_PART ? node.K : node.C;
                matrix[j * ld + i][LANE] = NOT_A_NUMBER;
                run(node);
                for (int s = 0; s < SIZE; s++) {
                    const double shown = node.growths[s][LANE], beside = node.growths[s][0];
                    if (sees(part, i, j, s)) expect(!(shown <= 1e300), where, i, j, s);
                    expect(beside <= 1e300, "lane beside", i, j, s);
                }
            }
        }
    }
}

void count(Node &n, V growth, V least) {
    V columns[SIZE * SIZE];
    std::copy(n.C, n.C + SIZE * SIZE, columns);
    leaf_counts(SIZE, n.R, n.K, n.C, n.work, growth, least,
                [&](V *target) { std::copy(columns, columns + SIZE * SIZE, target); }, {n.values, n.growths, n.leasts});
}

void check_leaves() {
    plant_in_leaf("leaf_counts", SIZE, -1.0, [](Node &n) { count(n, V{}, all(1.0)); });
    plant_in_leaf("leaf_logdet", Node::LD, 1.0,
                  [](Node &n) { leaf_logdet(SIZE, n.R, n.K, n.C, n.work, V{}, n.growths); });
    for (bool growth : {true, false}) {
        Node n(SIZE, -1.0);
        V before = V{}, least = all(1.0);
        (growth ? before : least)[LANE] = NOT_A_NUMBER;
        count(n, before, least);
        for (int s = 0; s < SIZE; s++) {
            const double shown = (growth ? n.growths : n.leasts)[s][LANE];
            expect(shown != shown, growth ? "growth before the leaf" : "least before the leaf", 0, 0, s);
        }
    }
}

void check_reductions() {
    constexpr int64_t pivots = 32, rows = 96;
    for (int i = 0; i < rows; i++) {
        double growth[rows] = {}, diagonal[rows] = {}, off[rows] = {};
        growth[i] = diagonal[i] = NOT_A_NUMBER;
        expect(!(largest_growth(growth, rows) <= 1e300), "largest_growth", i);
        const double bound = tridiagonal_bound(rows, diagonal, off);
        expect(bound != bound, "tridiagonal_bound", i);

        static double U[rows * pivots], L[rows * pivots], d[pivots];
        for (double &pivot : d) pivot = -1.0;
        matrix::Half half{};
        half.size = 32;
        half.panel = {pivots, rows, {U, rows, pivots}, {L, rows, pivots}, d, growth};
        matrix::finish_half(half);
        expect(half.child.growth != half.child.growth, "finish_half", i);
    }
    LaneProduct product;
    for (int k = 0; k < 20; k++) {
        V x = all(2.0);
        if (k == 11) x[LANE] = NOT_A_NUMBER;
        product.multiply(x);
    }
    expect(product.logarithm()[LANE] != product.logarithm()[LANE] && product.logarithm()[0] > 0, "LaneProduct");
}

// Counts without squares: what came before the leaf, and every entry of the leaf.
void check_inertia() {
    constexpr int64_t c = 8, ld = 2 * c;
    alignas(64) static char memory[1 << 16];
    for (int planted = -1; planted < ld * ld; planted++) {
        const int column = planted / ld, row = planted % ld;
        if (planted >= 0 && (row < column || (column < c && row < c && row != column))) continue;
        double node[ld * ld] = {};
        for (int i = 0; i < ld; i++) node[i * (ld + 1)] = -1.0;
        V growth = all(1.0), positive;
        if (planted >= 0) node[planted] = NOT_A_NUMBER;
        else growth[LANE] = NOT_A_NUMBER;
        ess::Arena arena(memory);
        InertiaLeaf leaf(arena, c);
        bool shown = planted < 0;
        for (int64_t first = 0; first < c; first += W) {
            V grown = growth;
            Mask<double> tie;
            leaf.count(node, ld, first, grown, positive, tie);
            if (planted < 0) expect(grown[LANE] != grown[LANE], "growth before the inertia leaf");
            for (int l = 0; l < W; l++) shown |= grown[l] != grown[l];
        }
        // a row meets the columns of earlier tokens; the last token is no column of any position
        const bool meet = row < c || (row < ld - 1 && (column >= c || c - 1 - column > row - c));
        expect(shown || !meet, "inertia leaf", row, column);
    }
}

} // namespace

int main() {
    check_maxima(1.0, NOT_A_NUMBER);
    check_maxima(1.0f, static_cast<float>(NOT_A_NUMBER));
    check_lanes<double>();
    check_lanes<float>();
    check_leaves();
    check_reductions();
    check_inertia();
    std::printf("%d forgotten\n", forgotten);
    return forgotten != 0;
}
