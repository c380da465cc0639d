// Compression against its formula in plain loops, and as an operation.
#include "modules/families/block_sparse/compression.h"

#include <cmath>
#include <fmt/format.h>
#include <omp.h>

#include "tests/support/op_check.h"

namespace weft::testing::block_sparse {
namespace {

enum class Form { mean, linear, mlp };

struct Case {
  Form form;
  KeySpan span;
  std::vector<std::int32_t> lengths;
  std::int64_t H = 2, D = 5, r = 7;

  DocumentsPtr documents() const { return Documents::from_lengths(lengths); }
  // x, then the form's weights.
  std::vector<Tensor> inputs() const {
    const std::int64_t l = span.length, hidden = form == Form::linear ? D : r;
    std::vector<Tensor> list{normal({documents()->tokens(), H, D}, 1)};
    if (form == Form::mean) return list;
    list.push_back(normal({H, l * D, hidden}, 3, 1.0 / std::sqrt(static_cast<double>(l * D))));
    if (form == Form::linear) return list;
    list.push_back(normal({H, l, D}, 2));
    list.push_back(normal({H, r}, 4));
    list.push_back(normal({H, r, D}, 5, 1.0 / std::sqrt(static_cast<double>(r))));
    return list;
  }
};

// The same as an operation's inputs: maps are weights, positions and biases are vectors.
std::vector<OpInput> roles(const std::vector<Tensor>& in) {
  std::vector<OpInput> list{in[0]};
  if (in.size() > 1) list.push_back(weight(in[1]));
  if (in.size() > 2) list.insert(list.end(), {vector_input(in[2]), vector_input(in[3]), weight(in[4])});
  return list;
}

Var apply(const Case& c, Tape& tape, std::span<const Var> in) {
  CompressionWeights weights;
  if (in.size() > 1) weights.w1 = in[1];
  if (in.size() > 2) weights.pe = in[2], weights.b1 = in[3], weights.w2 = in[4];
  return compress(tape, in[0], weights, c.span, c.documents());
}

Tensor reference(const Case& c, const std::vector<Tensor>& in) {
  const DocumentsPtr documents = c.documents();
  const std::int64_t l = c.span.length;
  const auto at = [&](std::int64_t t, std::int64_t h, std::int64_t x) {
    return in[0].data<double>()[(t * c.H + h) * c.D + x];
  };
  std::vector<double> y;
  for (std::int64_t n = 0; n < documents->count(); ++n) {
    for (std::int64_t begin = documents->begin(n); begin + l <= documents->end(n); begin += c.span.stride) {
      for (std::int64_t h = 0; h < c.H; ++h) {
        std::vector<double> row(static_cast<std::size_t>(c.D), 0.0);
        for (std::int64_t x = 0; x < c.D; ++x) {
          for (std::int64_t o = 0; o < l; ++o)
            row[static_cast<std::size_t>(x)] += at(begin + o, h, x) / static_cast<double>(l);
        }
        const std::int64_t hidden = c.form == Form::mean ? 0 : in[1].dim(2);
        for (std::int64_t j = 0; j < hidden; ++j) {
          double a = c.form == Form::mlp ? in[3].data<double>()[h * hidden + j] : 0.0;
          for (std::int64_t i = 0; i < l * c.D; ++i) {
            a +=
                in[1].data<double>()[(h * l * c.D + i) * hidden + j] *
                (at(begin + i / c.D, h, i % c.D) + (c.form == Form::mlp ? in[2].data<double>()[h * l * c.D + i] : 0.0));
          }
          if (c.form == Form::linear) row[static_cast<std::size_t>(j)] += a;
          for (std::int64_t x = 0; c.form == Form::mlp && x < c.D; ++x) {
            row[static_cast<std::size_t>(x)] +=
                in[4].data<double>()[(h * hidden + j) * c.D + x] * a / (1.0 + std::exp(-a));
          }
        }
        y.insert(y.end(), row.begin(), row.end());
      }
    }
  }
  return Tensor::from({static_cast<std::int64_t>(y.size()) / (c.H * c.D), c.H, c.D}, y);
}

OP_TEST(Compression, IsItsFormulaAndDifferentiable) {
  for (const Form form : {Form::mean, Form::linear, Form::mlp}) {
    for (const KeySpan span : {KeySpan{1, 1}, KeySpan{4, 2}, KeySpan{6, 6}, KeySpan{6, 2}}) {
      SCOPED_TRACE(fmt::format("form {}, {} tokens every {}", static_cast<int>(form), span.length, span.stride));
      const Case c{.form = form, .span = span, .lengths = {3, 0, 1, 6, 7, 13}};
      const std::vector<Tensor> inputs = c.inputs();
      check_op({.name = "compression", .inputs = roles(inputs), .function = [&](Tape& tape, std::span<const Var> in) {
                  return std::vector{apply(c, tape, in)};
                }});
      Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
      std::vector<Var> constants;
      for (const Tensor& t : inputs) constants.push_back(Tape::constant(t));
      EXPECT_TRUE(close(apply(c, tape, constants).value, reference(c, inputs), 1e-12, 1e-10));
    }
  }
}

// More blocks than a work item holds, wide heads, and a document shorter than a block.
OP_TEST(Compression, LongDocuments) {
  const Case wide{.form = Form::mlp, .span = {8, 4}, .lengths = {300, 7, 150}, .D = 72, .r = 80};
  check_op({.name = "compression of whole packs",
            .inputs = roles(wide.inputs()),
            .function = [&](Tape& tape, std::span<const Var> in) { return std::vector{apply(wide, tape, in)}; }});
  const Case linear{.form = Form::linear, .span = {6, 2}, .lengths = {30, 7}, .D = 16};
  check_op({.name = "linear compression of whole packs",
            .inputs = roles(linear.inputs()),
            .function = [&](Tape& tape, std::span<const Var> in) { return std::vector{apply(linear, tape, in)}; }});
  const Case c{.form = Form::mlp, .span = {8, 4}, .lengths = {300, 7, 150}, .D = 12, .r = 17};
  const std::vector<Tensor> inputs = c.inputs();
  check_op({.name = "compression", .inputs = roles(inputs), .function = [&](Tape& tape, std::span<const Var> in) {
              return std::vector{apply(c, tape, in)};
            }});
  const OpCase op{.name = "", .inputs = roles(inputs), .function = [&](Tape& tape, std::span<const Var> in) {
                    return std::vector{apply(c, tape, in)};
                  }};
  const Evaluation some = evaluate(op, DType::f32);
  EXPECT_TRUE(close(evaluate(op, DType::f64).outputs[0], reference(c, inputs), 1e-12, 1e-10));
  const int threads = omp_get_max_threads();
  omp_set_num_threads(threads == 1 ? 3 : 1);
  const Evaluation others = evaluate(op, DType::f32);
  omp_set_num_threads(threads);
  EXPECT_TRUE(bitwise_equal(others.outputs[0], some.outputs[0]));
  for (std::size_t i = 0; i < some.gradients.size(); ++i) {
    EXPECT_TRUE(bitwise_equal(others.gradients[i], some.gradients[i])) << "input " << i;
  }
}

TEST(Compression, OfNoWholeBlockIsEmpty) {
  const Case c{.form = Form::mlp, .span = {8, 4}, .lengths = {7, 0}};
  const Evaluation e =
      evaluate({.name = "",
                .inputs = roles(c.inputs()),
                .function = [&](Tape& tape, std::span<const Var> in) { return std::vector{apply(c, tape, in)}; }},
               DType::f64);
  EXPECT_EQ(e.outputs[0].shape(), Shape({0, 2, 5}));
}

TEST(Compression, RefusesWhatDoesNotFit) {
  const Case c{.form = Form::mlp, .span = {4, 2}, .lengths = {9}};
  Tape tape(heap_allocator());
  std::vector<Var> in;
  for (const Tensor& t : c.inputs()) in.push_back(tape.leaf(t));
  const DocumentsPtr documents = c.documents();
  EXPECT_NO_THROW(compress(tape, in[0], {in[2], in[1], in[3], in[4]}, c.span, documents));
  EXPECT_THROW(compress(tape, in[0], {in[2], in[1], in[3], {}}, c.span, documents), Error);
  EXPECT_THROW(compress(tape, in[0], {{}, in[1], {}, {}}, c.span, documents), Error) << "linear is D wide";
  EXPECT_THROW(compress(tape, in[0], {in[2], in[1], in[3], in[4]}, {4, 3}, documents), Error);
  EXPECT_THROW(compress(tape, in[0], {in[2], in[1], in[3], in[4]}, {6, 2}, documents), Error);
}

}  // namespace
}  // namespace weft::testing::block_sparse
