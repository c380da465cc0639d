#include "train/panel/panel_table.h"

#include <gtest/gtest.h>

#include "autograd/check.h"

namespace weft {
namespace {

const std::vector<std::string> kColumns = {"mixer", "right", "seconds"};
constexpr const char* kText =
    "# Title\n<!-- panel: begin -->\n| mixer | right | seconds |\n|---|---:|---:|\n| b | 1.0 | 2 |\n"
    "<!-- panel: end -->\nend\n";

TEST(PanelTable, ReplacesItsRowsAndKeepsTheOthers) {
  const std::vector<PanelRow> rows = {{"c", {"3.0", "4"}}, {"a", {"5.0", "6"}}};
  const std::string text = update_panel_table(kText, "mixers.md", kColumns, rows);
  EXPECT_EQ(text,
            "# Title\n<!-- panel: begin -->\n| mixer | right | seconds |\n|---|---:|---:|\n| a | 5.0 | 6 |\n"
            "| b | 1.0 | 2 |\n| c | 3.0 | 4 |\n<!-- panel: end -->\nend\n");
  EXPECT_EQ(update_panel_table(text, "mixers.md", kColumns, rows), text);
  const std::vector<PanelRow> again = {{"b", {"9.0", "1"}}};
  EXPECT_NE(update_panel_table(text, "mixers.md", kColumns, again).find("| b | 9.0 | 1 |"), std::string::npos);
}

TEST(PanelTable, StartsEmpty) {
  EXPECT_EQ(update_panel_table("<!-- panel: begin -->\n<!-- panel: end -->\n", "mixers.md", kColumns, {}),
            "<!-- panel: begin -->\n| mixer | right | seconds |\n|---|---:|---:|\n<!-- panel: end -->\n");
}

TEST(PanelTable, RefusesTextWithoutItsPlace) {
  EXPECT_THROW(update_panel_table("nothing", "mixers.md", kColumns, {}), Error);
  EXPECT_THROW(update_panel_table("<!-- panel: end -->\n<!-- panel: begin -->\n", "mixers.md", kColumns, {}), Error);
  const std::vector<std::string> other = {"mixer", "right"};
  EXPECT_THROW(update_panel_table(kText, "mixers.md", other, {}), Error) << "b has three cells";
}

}  // namespace
}  // namespace weft
