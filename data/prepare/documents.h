// Where documents begin and end in a stream of text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "data/prepare/prepare.h"

namespace weft {

// How one input is cut into records: jsonl lines, or documents of a text file.
struct RecordRule {
  InputFormat format = InputFormat::text;
  TextSplit split = TextSplit::file;
  std::string delimiter;

  // The end of the last complete record in `text` that ends after `from`, 0 if there is none. `text` begins with a
  // record; where its last record ends is only known at the end of the file.
  std::size_t last_end(std::string_view text, std::size_t from) const;

  // The end of the first record in `text`, 0 if it is not complete. `text` begins at the start of a line.
  std::size_t first_end(std::string_view text) const;

  // Calls `record` for each record of `text`, which consists of whole records, without separators. Blank jsonl lines
  // and runs of blank lines between documents are no records. Returns how many lines of jsonl there were, else 0.
  std::int64_t for_each(std::string_view text,
                        const std::function<void(std::string_view, std::int64_t line)>& record) const;
};

}  // namespace weft
