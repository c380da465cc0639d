// Which part of a packed row a context-parallel rank holds, and how its documents go on at its neighbours. Computed on
// the host once for each row from the document boundaries, which every rank knows; shared by all layers.
//
// T tokens in the row, P ranks, rank r holds tokens [r T/P, (r+1) T/P).
#pragma once

#include <cstdint>

#include "autograd/documents.h"

namespace weft {

// The ranks that hold a document's first and last token.
struct RankRange {
  int first = 0;
  int last = 0;
  bool operator==(const RankRange&) const = default;
};

struct SequencePlan {
  int ranks = 1;
  int rank = 0;
  std::int64_t row_tokens = 0;  // T
  std::int64_t begin = 0;       // this rank's tokens [begin, end) of the row
  std::int64_t end = 0;

  // The local documents, boundaries relative to `begin`, without empty ones; pos0 of the first counts the tokens that
  // earlier ranks hold, so positions are those in the whole document. With one rank: the row's documents as they are.
  DocumentsPtr local;

  // Tokens of the first local document on earlier ranks, and of the last local document on later ranks.
  std::int64_t carry_in = 0;
  std::int64_t carry_out = 0;

  RankRange first_document;  // who holds the first local document
  RankRange last_document;   // who holds the last local document; the same one if there is only one

  // The first local token starts a document: nothing comes from the left.
  bool starts_inside() const { return carry_in == 0; }
  // A document starts among the local tokens, so the incoming state does not reach the end of this rank.
  bool has_reset = true;

  // Earlier ranks that hold part of the first local document; later ranks that hold part of the last.
  int earlier_ranks() const { return rank - first_document.first; }
  int later_ranks() const { return last_document.last - rank; }

  std::int64_t tokens() const { return end - begin; }
  const std::vector<std::int32_t>& positions() const { return local->positions(); }
};

// The plan of one rank. Throws Error (internal) unless P divides T and every rank has a token (or P = 1).
SequencePlan plan_sequence(const DocumentsPtr& row, int ranks, int rank);

}  // namespace weft
