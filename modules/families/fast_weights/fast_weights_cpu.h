// CPU kernels of fast_weights.h, templated on float/double: how the chunks of a row are walked.
//
// A chain is one head of one document: its chunks follow each other. Either there is a task for each chain, or they are
// walked one by one, and the threads share the blocks of rows of a chunk and the three matrices; whichever keeps more
// threads busy. Both do the same arithmetic in the same order, so results do not depend on the number of threads.
// Backward walks a chain forwards first and keeps the weights and momentum between chunks: all of them for short
// chains, otherwise checkpoints, from which it walks one segment after the other again.
//
// P elements of one head's weights; W, Z weights and momentum before a chunk; README.md has the formulas.
#pragma once

#include "autograd/parallel_for.h"
#include "modules/families/fast_weights/memory_network_cpu.h"
#include "modules/families/fast_weights/orthogonalise_cpu.h"
#include "modules/families/fast_weights/row_norms_cpu.h"

namespace weft {

enum class FastWeightPass : std::uint8_t { forward, backward, proceed };

template <class T>
class FastWeightWalk {
 public:
  // With a null workspace the object only knows its size.
  FastWeightWalk(const FastWeightProblem& p, FastWeightPass pass, void* workspace)
      : p_(p), L_(p.config.chunk), P_(3 * p.d_m * p.d_h), threads_(task_threads()) {
    std::int64_t longest = 0;
    for (std::int64_t n = 0; n < p.N; ++n) longest = std::max(longest, length(n));
    const std::int64_t blocks = block_count(std::min(L_, longest), Network::kRows);
    // Threads that share blocks wait for the update between two chunks: their number counts a fifth less.
    across_ = chains_at_once(longest) >= 0.8 * static_cast<double>(std::min(threads_, blocks));
    slots_ = across_ ? 1 : std::min(2 * threads_, blocks);
    const std::int64_t writes = longest / L_;
    segment_ = writes <= kStoredWrites ? std::max<std::int64_t>(1, writes)
                                       : static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(writes))));
    checkpoints_ = std::max<std::int64_t>(1, block_count(writes, segment_));

    Carver<T> one_thread(nullptr), one_chain(nullptr);
    one_thread.take(Network::scratch_elements(p));
    network_stride_ = one_thread.used();
    carve(one_chain, pass);
    chain_stride_ = one_chain.used();

    Carver<T> carver(static_cast<T*>(workspace));
    networks_ = carver.take(threads_ * network_stride_);
    chains_ = carver.take((across_ ? threads_ : 1) * chain_stride_);
    if (pass == FastWeightPass::backward) {
      const std::int64_t in_memory = kGroupBytes / (p.H * P_ * static_cast<std::int64_t>(sizeof(T)));
      group_ = across_ ? std::clamp<std::int64_t>(std::max(in_memory, block_count(4 * threads_, p.H)), 1,
                                                  std::max<std::int64_t>(1, p.N))
                       : 1;
      dstart_ = carver.take(group_ * p.H * P_);
      total_ = carver.take(p.H * P_);
    }
    bytes_ = static_cast<std::size_t>(carver.used()) * sizeof(T);
  }
  std::size_t bytes() const { return bytes_; }

  void forward(const FastWeightForward& a) {
    for_each_chain(p_.N * p_.H, [&](std::int64_t i) { forward_chain(a, i / p_.H, i % p_.H); });
  }

  void proceed(const FastWeightContinue& a) {
    for_each_chain(p_.N * p_.H, [&](std::int64_t i) { proceed_chain(a, i / p_.H, i % p_.H); });
  }

  // Gradients of the initial weights are summed over the documents in their order, a group of documents at a time.
  void backward(const FastWeightBackward& a) {
    std::fill(total_, total_ + p_.H * P_, T(0));
    for (std::int64_t first = 0; first < p_.N; first += group_) {
      const std::int64_t count = std::min(group_, p_.N - first);
      for_each_chain(count * p_.H,
                     [&](std::int64_t i) { backward_chain(a, first + i / p_.H, i % p_.H, dstart_ + i * P_); });
      parallel_blocks(p_.H * P_, 16384, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        for (std::int64_t n = 0; n < count; ++n) add(dstart_ + n * p_.H * P_, begin, end, total_);
      });
    }
    for (std::int64_t h = 0; h < p_.H; ++h) {
      const T* d = total_ + h * P_;
      put_matrix(d, h, a.dw0, a.write_dw0);
      put_matrix(d + P_ / 3, h, a.dw2, a.write_dw2);
      put_matrix(d + 2 * P_ / 3, h, a.dw1, a.write_dw1);
    }
  }

 private:
  using Network = MemoryNetwork<T>;

  static constexpr std::int64_t kStoredWrites = 32;        // a chain with more of them uses checkpoints
  static constexpr std::int64_t kGroupBytes = 64LL << 20;  // of gradients of initial weights

  // What a chain works with.
  struct Chain {
    T *W, *Z;                      // forward: where they are not the caller's
    T* normalised;                 // N(W)
    T* g;                          // what a chunk adds to Z; then D, or the gradient of what it read
    T* norms;                      // of the rows of the initial weights
    T* partials;                   // [slots][P]
    T* start;                      // initial weights W0, W2, W1
    std::array<T*, 3> orthogonal;  // scratch of each matrix
    // Backward.
    T* checkpoints;  // [checkpoints][W, Z]
    T* entries;      // [segment + 1][W, Z]
    T *dW, *dZ, *d_inner, *dnorms, *unnormalised;
  };

  // Tokens and chunks of a document; the first `writes` chunks are written.
  struct Span {
    std::int64_t begin, length, chunks, writes;
  };

  std::int64_t length(std::int64_t n) const { return p_.cu_seqlens[n + 1] - p_.cu_seqlens[n]; }

  // A last write that completes its document matters to the final state only.
  Span span(std::int64_t n, bool final_state) const {
    const std::int64_t tokens = length(n), full = tokens / L_;
    const bool unread = tokens > 0 && tokens % L_ == 0 && !final_state;
    return {p_.cu_seqlens[n], tokens, block_count(tokens, L_), full - (unread ? 1 : 0)};
  }

  Chain carve(Carver<T>& carver, FastWeightPass pass) const {
    Chain c{};
    if (pass == FastWeightPass::forward) {
      c.W = carver.take(P_);
      c.Z = carver.take(P_);
    }
    c.normalised = carver.take(P_);
    c.g = carver.take(P_);
    c.norms = carver.take(weight_rows(p_));
    c.partials = carver.take(slots_ * P_);
    c.start = carver.take(P_);
    if (p_.config.orthogonalise) {
      for (T*& scratch : c.orthogonal) scratch = carver.take(Orthogonaliser<T>::scratch_elements(p_.d_h, p_.d_m));
    }
    if (pass == FastWeightPass::backward) {
      c.checkpoints = carver.take(checkpoints_ * 2 * P_);
      c.entries = carver.take((segment_ + 1) * 2 * P_);
      c.dW = carver.take(P_);
      c.dZ = carver.take(P_);
      c.d_inner = carver.take(P_);
      c.dnorms = carver.take(weight_rows(p_));
      c.unnormalised = carver.take(P_);
    }
    return c;
  }

  // --- threads -------------------------------------------------------------------------------------------------------

  template <class F>
  void for_each_chain(std::int64_t count, F&& f) const {
    if (across_) return for_each_task(count, f);
    for (std::int64_t i = 0; i < count; ++i) f(i);
  }
  // How many chains run at once on average, each task a chain: as many as the longest one leaves time for.
  double chains_at_once(std::int64_t longest) const {
    if (longest == 0) return 1.0;
    const double chains = static_cast<double>(p_.H * p_.T) / static_cast<double>(longest);
    return chains / std::ceil(chains / static_cast<double>(threads_));
  }
  Chain chain(FastWeightPass pass) const {
    Carver<T> carver(chains_ + (across_ ? omp_get_thread_num() * chain_stride_ : 0));
    return carve(carver, pass);
  }

  // f(network, begin, end, partial) for every block of n rows. What it writes to `partial` [P] is summed into `sum`
  // unless that is null, always block after block.
  template <class F>
  void for_each_block(const Chain& c, std::int64_t n, T* sum, F&& f) const {
    const std::int64_t blocks = block_count(n, Network::kRows);
    for (std::int64_t first = 0; first < blocks; first += slots_) {
      const std::int64_t count = std::min(slots_, blocks - first);
      for_each_task(count, [&](std::int64_t i) {
        Network network(p_, networks_ + omp_get_thread_num() * network_stride_);
        const std::int64_t begin = (first + i) * Network::kRows;
        f(network, begin, std::min(n, begin + Network::kRows), c.partials + i * P_);
      });
      if (sum == nullptr) continue;
      if (first == 0) std::fill(sum, sum + P_, T(0));
      for (std::int64_t i = 0; i < count; ++i) add(c.partials + i * P_, 0, P_, sum);
    }
  }

  // f(orthogonaliser, offset in W) for the three matrices.
  template <class F>
  void for_each_matrix(std::array<Orthogonaliser<T>, 3>& matrices, F&& f) const {
    for_each_task(3, [&](std::int64_t i) { f(matrices[static_cast<std::size_t>(i)], i * P_ / 3); });
  }
  std::array<Orthogonaliser<T>, 3> orthogonalisers(const Chain& c) const {
    return {Orthogonaliser<T>(p_.d_h, p_.d_m, c.orthogonal[0]), Orthogonaliser<T>(p_.d_h, p_.d_m, c.orthogonal[1]),
            Orthogonaliser<T>(p_.d_m, p_.d_h, c.orthogonal[2])};
  }

  // --- where things are ----------------------------------------------------------------------------------------------

  // Rows of head h from token t on, of a tensor [T, H, width].
  template <class U>
  Rows<U> rows(U* base, std::int64_t t, std::int64_t h, std::int64_t width) const {
    return {base == nullptr ? nullptr : base + (t * p_.H + h) * width, p_.H * width};
  }
  Rows<const T> input(const void* base, std::int64_t t, std::int64_t h, std::int64_t width) const {
    return rows(static_cast<const T*>(base), t, h, width);
  }
  RowGradients<T> gradient(void* base, Write write, std::int64_t t, std::int64_t h, std::int64_t width) const {
    return {rows(static_cast<T*>(base), t, h, width), write};
  }
  WrittenRows<T> written_rows(std::int64_t t, std::int64_t n, std::int64_t h) const {
    return {n,
            input(p_.k, t, h, p_.d_m),
            input(p_.v, t, h, p_.d_m),
            input(p_.eta, t, h, 3),
            input(p_.mu, t, h, 1),
            input(p_.lambda, t, h, 1)};
  }
  // State of head h of document n in [N, H, P].
  template <class U>
  auto* state(U* base, std::int64_t n, std::int64_t h) const {
    using Element = std::conditional_t<std::is_const_v<U>, const T, T>;
    return base == nullptr ? nullptr : static_cast<Element*>(base) + (n * p_.H + h) * P_;
  }
  void pack_initial(std::int64_t h, T* to) const {
    const std::int64_t matrix = P_ / 3;
    for (const void* w : {p_.w0, p_.w2, p_.w1}) {
      const T* from = static_cast<const T*>(w) + h * matrix;
      to = std::copy(from, from + matrix, to);
    }
  }
  // Null stands for zero.
  void load(const T* from, T* to) const {
    if (from == nullptr) {
      std::fill(to, to + P_, T(0));
    } else {
      std::copy(from, from + P_, to);
    }
  }
  void put_state(const T* d, T* to, Write write) const {
    if (to == nullptr) return;
    for (std::int64_t e = 0; e < P_; ++e) store(to[e], d[e], write);
  }
  void put_matrix(const T* d, std::int64_t h, void* target, Write write) const {
    if (target == nullptr) return;
    T* to = static_cast<T*>(target) + h * P_ / 3;
    for (std::int64_t e = 0; e < P_ / 3; ++e) store(to[e], d[e], write);
  }
  static void add(const T* from, std::int64_t begin, std::int64_t end, T* to) {
#pragma omp simd
    for (std::int64_t e = begin; e < end; ++e) to[e] += from[e];
  }
  double inner(const T* a, const T* b) const {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t e = 0; e < P_; ++e) sum += static_cast<double>(a[e]) * static_cast<double>(b[e]);
    return sum;
  }
  static T mean(std::int64_t n, const Rows<const T>& x) {
    if (!x) return T(0);
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(*x[i]);
    return static_cast<T>(sum / static_cast<double>(n));
  }

  // --- one chunk -----------------------------------------------------------------------------------------------------

  NormMode norm() const {
    return p_.config.norm;
  }
  const T* read_weights(const Chain& c, const T* W) const {
    return norm() == NormMode::pre ? c.normalised : W;
  }
  const T* inner_weights(const Chain& c, const T* W) const {
    return norm() == NormMode::pre || norm() == NormMode::read_raw ? c.normalised : W;
  }
  const T* update_base(const Chain& c, const T* W) const {
    return norm() == NormMode::read_raw ? c.normalised : W;
  }

  void prepare(const Chain& c, const T* W) const {
    if (inner_weights(c, W) == c.normalised) normalise_rows(p_, c.norms, W, c.normalised);
  }

  // Weights and momentum at the start of document n, and the norms that the rows of its weights go back to.
  void start(const Chain& c, const void* weights, const void* momentum, std::int64_t n, std::int64_t h, T* W,
             T* Z) const {
    pack_initial(h, c.start);
    row_norms(p_, c.start, c.norms);
    const T* from = weights == nullptr ? c.start : state(weights, n, h);
    std::copy(from, from + P_, W);
    load(state(momentum, n, h), Z);
  }

  // (W, Z) after the chunk x, to_W and to_Z, which may be W and Z; c.g holds g, and prepare(c, W) has been called.
  void update(const Chain& c, const WrittenRows<T>& x, const T* W, const T* Z, T* to_W, T* to_Z) const {
    const T mu = mean(x.n, x.mu), keep = T(1) - mean(x.n, x.lambda);
    for (std::int64_t e = 0; e < P_; ++e) to_Z[e] = mu * Z[e] + c.g[e];
    const T* D = to_Z;
    if (p_.config.orthogonalise) {
      auto matrices = orthogonalisers(c);
      for_each_matrix(matrices, [&](Orthogonaliser<T>& ns, std::int64_t at) { ns.run(to_Z + at, c.g + at); });
      D = c.g;
    }
    const T* base = update_base(c, W);
    for (std::int64_t e = 0; e < P_; ++e) to_W[e] = keep * base[e] + D[e];
    if (norm() == NormMode::post) normalise_rows(p_, c.norms, to_W, to_W);
  }

  void write(const Chain& c, const WrittenRows<T>& x, const T* W, const T* Z, T* to_W, T* to_Z) const {
    prepare(c, W);
    for_each_block(c, x.n, c.g, [&](Network& network, std::int64_t begin, std::int64_t end, T* partial) {
      network.descent(x.block(begin, end), inner_weights(c, W), partial);
    });
    update(c, x, W, Z, to_W, to_Z);
  }

  // --- forward -------------------------------------------------------------------------------------------------------

  void forward_chain(const FastWeightForward& a, std::int64_t n, std::int64_t h) const {
    const Chain c = chain(FastWeightPass::forward);
    const bool final_state = a.final_weights != nullptr;
    const Span s = span(n, final_state);
    T* W = final_state ? state(a.final_weights, n, h) : c.W;
    T* Z = final_state ? state(a.final_momentum, n, h) : c.Z;
    start(c, a.initial_weights, a.initial_momentum, n, h, W, Z);
    for (std::int64_t i = 0; i < s.chunks; ++i) {
      const std::int64_t t = s.begin + i * L_, count = std::min(L_, s.length - i * L_);
      const WrittenRows<T> x = written_rows(t, count, h);
      const bool writes = i < s.writes;
      prepare(c, W);
      for_each_block(c, count, writes ? c.g : nullptr,
                     [&](Network& network, std::int64_t begin, std::int64_t end, T* partial) {
                       network.read(end - begin, input(p_.q, t + begin, h, p_.d_m), read_weights(c, W),
                                    rows(static_cast<T*>(a.out), t + begin, h, p_.d_m));
                       if (writes) network.descent(x.block(begin, end), inner_weights(c, W), partial);
                     });
      if (writes) update(c, x, W, Z, W, Z);
    }
  }

  // Reads piece by piece; a piece ends where a chunk does. What is written comes from the buffers of the state.
  void proceed_chain(const FastWeightContinue& a, std::int64_t n, std::int64_t h) const {
    const Chain c = chain(FastWeightPass::proceed);
    T* W = state(a.weights, n, h);
    T* Z = state(a.momentum, n, h);
    const std::int64_t at = (n * p_.H + h) * L_;
    T* keys = static_cast<T*>(a.pending_keys) + at * p_.d_m;
    T* values = static_cast<T*>(a.pending_values) + at * p_.d_m;
    T* rates = static_cast<T*>(a.pending_rates) + at * 5;
    std::int64_t pending = a.pending[n];
    if (norm() != NormMode::none && (norm() == NormMode::pre || pending + length(n) >= L_)) {
      pack_initial(h, c.start);
      row_norms(p_, c.start, c.norms);
    }
    for (std::int64_t t = p_.cu_seqlens[n], end = p_.cu_seqlens[n + 1]; t < end;) {
      const std::int64_t count = std::min(L_ - pending, end - t);
      if (norm() == NormMode::pre) prepare(c, W);
      for_each_block(c, count, nullptr, [&](Network& network, std::int64_t first, std::int64_t last, T*) {
        network.read(last - first, input(p_.q, t + first, h, p_.d_m), read_weights(c, W),
                     rows(static_cast<T*>(a.out), t + first, h, p_.d_m));
      });
      const WrittenRows<T> x = written_rows(t, count, h);
      for (std::int64_t i = 0; i < count; ++i) {
        std::copy(x.k[i], x.k[i] + p_.d_m, keys + (pending + i) * p_.d_m);
        std::copy(x.v[i], x.v[i] + p_.d_m, values + (pending + i) * p_.d_m);
        T* rate = std::copy(x.eta[i], x.eta[i] + 3, rates + (pending + i) * 5);
        rate[0] = x.mu ? *x.mu[i] : T(0);
        rate[1] = x.lambda ? *x.lambda[i] : T(0);
      }
      t += count;
      pending += count;
      if (pending < L_) continue;
      write(c, {L_, {keys, p_.d_m}, {values, p_.d_m}, {rates, 5}, {rates + 3, 5}, {rates + 4, 5}}, W, Z, W, Z);
      pending = 0;
    }
  }

  // --- backward: fast_weights_backward_cpu.h -------------------------------------------------------------------------

  void backward_chain(const FastWeightBackward& a, std::int64_t n, std::int64_t h, T* dstart) const;
  void walk_segment(const Chain& c, const Span& s, std::int64_t segment, std::int64_t h) const;
  void chunk_gradients(const FastWeightBackward& a, const Chain& c, std::int64_t t, std::int64_t count, std::int64_t h,
                       const T* W, const T* Z, const T* Z_next) const;
  void update_gradients(const FastWeightBackward& a, const Chain& c, const WrittenRows<T>& x, std::int64_t t,
                        std::int64_t h, const T* W, const T* Z, const T* Z_next) const;

  // Entry i of the segment: weights and momentum before its i-th chunk.
  T* entry_W(const Chain& c, std::int64_t i) const {
    return c.entries + i * 2 * P_;
  }
  T* entry_Z(const Chain& c, std::int64_t i) const {
    return entry_W(c, i) + P_;
  }

  const FastWeightProblem& p_;
  std::int64_t L_, P_, threads_;
  bool across_ = false;  // a task for each chain
  std::int64_t slots_ = 1, segment_ = 1, checkpoints_ = 1, group_ = 1;
  std::int64_t network_stride_ = 0, chain_stride_ = 0;
  std::size_t bytes_ = 0;
  T *networks_ = nullptr, *chains_ = nullptr;
  T *dstart_ = nullptr, *total_ = nullptr;  // [group, H, P], [H, P]
};

}  // namespace weft
