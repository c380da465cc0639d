#include "train/recipe/recipe.h"

#include <gtest/gtest.h>

#include "train/recipe/schema.h"

namespace weft {
namespace {

// A stand-in mixer, so that these tests depend on no real one.
class NoMixer final : public Mixer {
 public:
  Var forward(Tape&, const Var& x, const DocumentsPtr&, MixerState*) override { return x; }
  std::unique_ptr<MixerState> initial_state(std::int64_t, const Place&) const override { return nullptr; }
  MixerCost cost(std::int64_t, std::int64_t) const override { return {}; }
  double state_bytes(std::int64_t) const override { return 0; }
};

std::unique_ptr<Mixer> make_no_mixer(const ParameterScope&, const MixerSite& site, const Options& options,
                                     const std::string& where) {
  if (site.width % options.integer("heads") != 0) {
    config_error("{}: heads = {} does not divide width = {}", where, options.integer("heads"), site.width);
  }
  return std::make_unique<NoMixer>();
}

const std::vector<const MixerType*>& mixers() {
  static const std::vector<OptionSpec> options = {
      {.key = "heads", .default_value = std::int64_t{4}, .help = "", .minimum = 1, .maximum = 1024, .choices = {}},
      {.key = "window", .default_value = std::int64_t{0}, .help = "", .minimum = 0, .choices = {}},
      {.key = "rope", .default_value = std::string("half"), .help = "", .choices = {"half", "none"}},
      {.key = "decay", .default_value = 0.5, .help = "", .choices = {}}};
  static const MixerType attention{.name = "attention",
                                   .summary = "",
                                   .options = options,
                                   .context_parallel = ContextParallel::keys_values,
                                   .limits = {},
                                   .create = make_no_mixer};
  static const MixerType gla{.name = "gla",
                             .summary = "",
                             .options = options,
                             .context_parallel = ContextParallel::state,
                             .limits = {},
                             .create = make_no_mixer};
  static const std::vector<const MixerType*> all = {&attention, &gla};
  return all;
}

constexpr const char* kGood = R"([run]
steps = 1000
seed = 3

[model]
width = 256
layers = 4
pattern = ["gla", "window"]

[mixer.gla]
heads = 2

[mixer.window]
type = "attention"
window = 128

[data]
train = "datasets/a/train"
sequence_length = 512
batch_tokens = 8192

[optimizer]
name = "muon"
learning_rate = 0.002
warmup_steps = 50
)";

Recipe parse(std::string_view text, const std::vector<std::string>& overrides = {}) {
  return parse_recipe(text, "quickstart.toml", overrides, mixers());
}

std::string error_of(std::string_view text, const std::vector<std::string>& overrides = {}) {
  try {
    parse(text, overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

// kGood with one piece of text replaced.
std::string edited(const std::string& from, const std::string& to) {
  std::string text = kGood;
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Recipe, ValuesAndDefaults) {
  const Recipe recipe = parse(kGood);
  EXPECT_EQ(recipe.run.name, "quickstart");
  EXPECT_EQ(recipe.run.steps, 1000);
  EXPECT_EQ(recipe.model.ffn_hidden(), 704);  // 8/3 * 256 = 682.7
  ASSERT_EQ(recipe.mixers.size(), 2u);
  EXPECT_EQ(recipe.mixer("window").type->name, "attention");
  EXPECT_EQ(recipe.mixer("window").where, "quickstart.toml:13: [mixer.window]");
  EXPECT_EQ(recipe.mixer("window").options.integer("window"), 128);
  EXPECT_EQ(recipe.mixer("window").options.integer("heads"), 4);
  EXPECT_EQ(recipe.data.rows_per_step(), 16);
  EXPECT_EQ(recipe.optimizer.name, UpdateRule::muon);
  EXPECT_EQ(recipe.optimizer.schedule, ScheduleLaw::wsd);
  EXPECT_EQ(recipe.checkpoint.keep, 3);
  EXPECT_EQ(rows_per_micro_batch(recipe), 1);
  EXPECT_FALSE(spike_guard_on(recipe));
}

TEST(Recipe, UnknownKeysSuggestTheNearest) {
  EXPECT_EQ(error_of(edited("learning_rate", "lerning_rate")),
            "quickstart.toml:24: unknown key \"lerning_rate\" in [optimizer]; did you mean \"learning_rate\"?");
  EXPECT_EQ(error_of(edited("heads = 2", "haeds = 2")),
            "quickstart.toml:11: unknown key \"haeds\" in [mixer.gla]; did you mean \"heads\"?");
  EXPECT_EQ(error_of(edited("seed = 3", "batch_tokens = 3")),
            "quickstart.toml:3: unknown key \"batch_tokens\" in [run]; it belongs in [data]");
  EXPECT_EQ(error_of(edited("heads = 2", "colour = 2")),
            "quickstart.toml:11: unknown key \"colour\" in [mixer.gla]; known keys: \"type\", \"heads\", \"window\", "
            "\"rope\", \"decay\"");
  EXPECT_EQ(error_of(edited("[optimizer]", "[optimiser]")),
            "quickstart.toml:22: unknown table [optimiser]; did you mean [optimizer]?");
  EXPECT_EQ(error_of("steps = 3\n" + std::string(kGood)),
            "quickstart.toml:1: key \"steps\" stands outside every table; it belongs in [run]");
  EXPECT_EQ(error_of(std::string(kGood) + "[optimizer.moun]\nmomentum = 0.9\n"),
            "quickstart.toml:26: unknown key \"moun\" in [optimizer]; did you mean \"muon\"?");
}

TEST(Recipe, WrongTypes) {
  EXPECT_EQ(error_of(edited("learning_rate = 0.002", "learning_rate = \"fast\"")),
            "quickstart.toml:24: learning_rate in [optimizer] must be a number, not the string \"fast\"");
  EXPECT_EQ(error_of(edited("steps = 1000", "steps = 1e3")),
            "quickstart.toml:2: steps in [run] must be an integer, not the number 1000");
  EXPECT_EQ(error_of(edited("width = 256", "width = true")),
            "quickstart.toml:6: width in [model] must be an integer, not true");
  EXPECT_EQ(error_of(edited("pattern = [\"gla\", \"window\"]", "pattern = \"gla\"")),
            "quickstart.toml:8: pattern in [model] must be an array of strings, not the string \"gla\"");
}

TEST(Recipe, ValuesOutOfRange) {
  EXPECT_EQ(error_of(edited("steps = 1000", "steps = -5")),
            "quickstart.toml:2: steps in [run] is -5, but must be at least 1");
  EXPECT_EQ(error_of(edited("learning_rate = 0.002", "learning_rate = nan")),
            "quickstart.toml:24: learning_rate in [optimizer] is nan, but must be between 0 and 1000");
  EXPECT_EQ(error_of(edited("name = \"muon\"", "name = \"adam\"")),
            "quickstart.toml:23: name in [optimizer] is \"adam\", but must be one of \"adamw\", \"muon\"; did you mean "
            "\"adamw\"?");
  EXPECT_EQ(error_of(edited("heads = 2", "rope = \"halv\"")),
            "quickstart.toml:11: rope in [mixer.gla] is \"halv\", but must be one of \"half\", \"none\"; did you mean "
            "\"half\"?");
}

TEST(Recipe, ValuesThatContradictEachOther) {
  EXPECT_EQ(error_of(edited("heads = 2", "heads = 3")),
            "quickstart.toml:10: [mixer.gla]: heads = 3 does not divide width = 256");
  EXPECT_EQ(error_of(edited("batch_tokens = 8192", "batch_tokens = 8000")),
            "quickstart.toml:20: batch_tokens in [data] is 8000, which is no multiple of sequence_length = 512; try "
            "7680 or 8192");
  EXPECT_EQ(error_of(edited("warmup_steps = 50", "warmup_steps = 900")),
            "quickstart.toml:25: warmup_steps in [optimizer] is 900, but the cooldown begins at step 800 "
            "(decay_fraction = 0.2 of 1000 steps)");
  EXPECT_EQ(error_of(edited("layers = 4", "layers = 1")),
            "quickstart.toml:7: layers in [model] is 1, fewer than the 2 entries of pattern");
  EXPECT_EQ(error_of(edited("train = \"datasets/a/train\"", "")),
            "quickstart.toml:17: [data] needs train = \"FOLDER\", or [[data.mixture]] tables");
  EXPECT_EQ(
      error_of(std::string(kGood) + "[parallel]\nmicro_batch_tokens = 1536\n"),
      "quickstart.toml:27: micro_batch_tokens in [parallel] is 1536, which does not divide batch_tokens = 8192 in "
      "[data]");
  EXPECT_EQ(error_of(edited("batch_tokens = 8192", "batch_tokens = 8192\nanchor = true") +
                     "[parallel]\nmicro_batch_tokens = 1024\n"),
            "quickstart.toml:28: micro_batch_tokens in [parallel] is 1024, but rows with an anchor are taken one at a "
            "time: use 512");
  EXPECT_EQ(error_of(edited("batch_tokens = 8192", "batch_tokens = 8192\npacking = \"bucket\"\nmin_bucket = 48")),
            "quickstart.toml:22: min_bucket in [data] is 48, which is no power of two");
}

TEST(Recipe, Mixers) {
  EXPECT_EQ(error_of(edited("[\"gla\", \"window\"]", "[\"gla\", \"window\", \"kda\"]")),
            "quickstart.toml:8: pattern in [model] names \"kda\", but there is no table [mixer.kda]");
  EXPECT_EQ(
      error_of(edited("type = \"attention\"", "type = \"atention\"")),
      "quickstart.toml:14: [mixer.window]: there is no mixer \"atention\"; mixers are \"attention\", \"gla\"; did "
      "you mean \"attention\"?");
  EXPECT_EQ(error_of(edited("type = \"attention\"", "")),
            "quickstart.toml:13: [mixer.window]: there is no mixer \"window\"; mixers are \"attention\", \"gla\" (a "
            "table of another name says which by type = \"...\")");
  EXPECT_EQ(error_of(edited("[\"gla\", \"window\"]", "[\"gla\"]")),
            "quickstart.toml:13: [mixer.window] is never used: pattern in [model] does not name it");
}

TEST(Recipe, RefusesWhatIsNotBuiltIn) {
  EXPECT_EQ(error_of(std::string(kGood) + "[parallel]\ncp = 2\n"),
            "quickstart.toml:27: cp in [parallel] is 2, but this build does not split rows over ranks; use 1");
  EXPECT_EQ(error_of(std::string(kGood) + "[parallel]\nzero = 1\n"),
            "quickstart.toml:27: zero in [parallel] is 1, but this build does not shard optimizer state; use 0");
}

TEST(Recipe, MissingKeysAndTables) {
  EXPECT_EQ(error_of(edited("steps = 1000\n", "")),
            "quickstart.toml:1: [run] needs the key \"steps\": optimizer steps");
  const std::string all = error_of("");
  for (const char* part : {"quickstart.toml: [run] needs the key \"steps\"", "[model] needs the key \"width\"",
                           "[data] needs the key \"sequence_length\""}) {
    EXPECT_NE(all.find(part), std::string::npos) << all;
  }
}

TEST(Recipe, ReportsAllDefectsInTheOrderOfTheFile) {
  std::string text = edited("steps = 1000", "steps = 0");
  text.replace(text.find("warmup_steps"), 12, "warmup_stepz");
  EXPECT_EQ(error_of(text),
            "quickstart.toml:2: steps in [run] is 0, but must be at least 1\n"
            "quickstart.toml:25: unknown key \"warmup_stepz\" in [optimizer]; did you mean \"warmup_steps\"?");
}

TEST(Recipe, SyntaxErrors) {
  const std::string error = error_of("[run]\nsteps = \n");
  EXPECT_TRUE(error.starts_with("quickstart.toml:2:9: not valid TOML: ")) << error;
  EXPECT_TRUE(error_of(edited("seed = 3", "steps = 3")).starts_with("quickstart.toml:3:")) << error;
  EXPECT_NE(error_of("[run]\nname = \"\xff\"\n").find("not valid TOML"), std::string::npos);
}

TEST(Recipe, DeepNestingIsRefused) {
  std::string header = "[run";
  for (int i = 0; i < 200000; ++i) header += ".a";
  EXPECT_EQ(error_of(header + "]\n"), "quickstart.toml:1: a key of more than 32 parts");
  EXPECT_EQ(parse("# " + std::string(100, '.') + "\n" + kGood).run.steps, 1000);
}

TEST(Recipe, OverridesTakeTheSameKeys) {
  const Recipe recipe =
      parse(kGood, {"run.steps=50", "optimizer.muon.momentum=0.9", "optimizer.learning_rate=1e-4", "run.name=first",
                    "optimizer.warmup_steps=5", "optimizer.groups=[{match = \"embedding\", lr_mult = 0.5}]"});
  EXPECT_EQ(recipe.run.steps, 50);
  EXPECT_EQ(recipe.run.name, "first");
  EXPECT_EQ(recipe.optimizer.muon.momentum, 0.9);
  EXPECT_EQ(recipe.optimizer.learning_rate, 1e-4);
  ASSERT_EQ(recipe.optimizer.groups.size(), 1u);
  EXPECT_EQ(recipe.optimizer.groups[0].lr_mult, 0.5);
  // A changed pattern may leave tables unused, and bring in new ones.
  const Recipe other = parse(kGood, {"model.pattern=[\"gla\", \"attention\"]", "mixer.attention.heads=8"});
  ASSERT_EQ(other.mixers.size(), 2u);
  EXPECT_EQ(other.mixers[1].options.integer("heads"), 8);
}

TEST(Recipe, OverridesAreCheckedLikeTheFile) {
  EXPECT_EQ(error_of(kGood, {"optimizer.lerning_rate=1"}),
            "--set optimizer.lerning_rate=1: unknown key \"lerning_rate\" in [optimizer]; did you mean "
            "\"learning_rate\"?");
  EXPECT_EQ(error_of(kGood, {"run.steps=many"}),
            "--set run.steps=many: steps in [run] must be an integer, not the string \"many\"");
  EXPECT_EQ(error_of(kGood, {"run.steps"}),
            "--set run.steps: expected KEY=VALUE with a dotted key, e.g. --set optimizer.learning_rate=0.001");
  EXPECT_EQ(error_of(kGood, {"run..steps=1"}),
            "--set run..steps=1: expected KEY=VALUE with a dotted key, e.g. --set optimizer.learning_rate=0.001");
  EXPECT_EQ(error_of(kGood, {"run.steps.x=1"}),
            "--set run.steps.x=1: [run.steps] cannot be reached this way; give a whole value with --set "
            "'run.steps=...'");
  EXPECT_EQ(error_of(kGood, {"data.batch_tokens=100"}),
            "--set data.batch_tokens=100: batch_tokens in [data] is 100, which is no multiple of sequence_length = "
            "512; try 512");
  // A value cannot smuggle in other keys.
  EXPECT_EQ(error_of(kGood, {"run.steps=5\nseed = 4"}).substr(0, 30), "--set run.steps=5\nseed = 4: st");
}

TEST(Recipe, MixturesAndGroups) {
  const std::string mixture = edited("train = \"datasets/a/train\"\n", "") +
                              "[[data.mixture]]\npath = \"a\"\nweight = 2\n[[data.mixture]]\npath = \"b\"\n"
                              "weight_points = [\"0:1\", \"1000:0.25\"]\nmax_epochs = 9\n"
                              "[[optimizer.groups]]\nmatch = \"*.a_log\"\noptimizer = \"frozen\"\n";
  const std::vector<SourceOptions> sources = source_options(parse(mixture));
  ASSERT_EQ(sources.size(), 2u);
  EXPECT_EQ(sources[0].weight.at(0).weight, 2.0);
  EXPECT_EQ(sources[0].max_epochs, 4);
  EXPECT_EQ(sources[1].weight.at(1).tokens, 1000);
  EXPECT_EQ(sources[1].weight.at(1).weight, 0.25);
  EXPECT_EQ(sources[1].max_epochs, 9);
  EXPECT_EQ(optimizer_options(parse(mixture)).groups.at(0).rule, UpdateRule::frozen);

  std::string bad = mixture;
  bad.replace(bad.find("1000:0.25"), 9, "1000-0.25");
  EXPECT_EQ(error_of(bad).substr(0, 78),
            "quickstart.toml:30: weight_points in [[data.mixture]] must be \"TOKENS:WEIGHT\" ");
  bad = mixture;
  bad.replace(bad.find("weight = 2"), 10, "wieght = 2");
  EXPECT_EQ(error_of(bad), "quickstart.toml:27: unknown key \"wieght\" in [[data.mixture]]; did you mean \"weight\"?");
  EXPECT_EQ(error_of(edited("batch_tokens = 8192", "batch_tokens = 8192\nskip_steps = [\"9-3\"]")),
            "quickstart.toml:21: skip_steps in [data] has \"9-3\"; expected \"N\" or \"FIRST-LAST\"");
}

TEST(Recipe, SettingsForItsParts) {
  Recipe recipe = parse(kGood, {"optimizer.beta2=auto", "data.skip_steps=[\"3\", \"7-9\"]", "run.seed=11"});
  const OptimizerOptions options = optimizer_options(recipe);
  EXPECT_DOUBLE_EQ(options.adamw.beta2, std::exp2(-8192.0 / 7e6));
  EXPECT_EQ(options.rule, UpdateRule::muon);
  EXPECT_EQ(options.muon.learning_rate, 0.002);
  EXPECT_EQ(options.muon.scale_factor, 0.2);
  recipe.optimizer.muon.scale = MuonScale::original;
  EXPECT_EQ(optimizer_options(recipe).muon.learning_rate, 0.02);
  EXPECT_EQ(optimizer_options(recipe).muon.weight_decay, 0.0);
  EXPECT_EQ(optimizer_options(recipe).muon.scale_factor, 1.0);

  const SamplerOptions sampler = sampler_options(recipe);
  EXPECT_EQ(sampler.seed, 11u);
  EXPECT_EQ(sampler.rows_per_step, 16);
  EXPECT_EQ(sampler.rows.min_bucket_log2, 6);
  const std::vector<std::pair<std::int64_t, std::int64_t>> ranges = {{3, 3}, {7, 9}};
  EXPECT_EQ(sampler.skip_steps, ranges);

  const LanguageModelConfig model = language_model_config(recipe, 258);
  EXPECT_EQ(model.vocabulary, 258);
  EXPECT_EQ(model.pattern.at(1).table, "quickstart.toml:13: [mixer.window]");
  EXPECT_EQ(schedule_of(recipe).final_fraction, 0.0);
  recipe.optimizer.schedule = ScheduleLaw::cosine;
  EXPECT_EQ(schedule_of(recipe).final_fraction, 0.1);
}

TEST(Recipe, FilesThatAreNoRecipes) {
  const auto message = [](const std::string& path) -> std::string {
    try {
      load_recipe(path, {}, mixers());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message("no/such/file.toml"), "there is no recipe no/such/file.toml");
  EXPECT_EQ(message("/"), "there is no recipe /");
}

TEST(ResolvedRecipe, ReadsBackToTheSameRecipe) {
  const std::string with_all = edited("train = \"datasets/a/train\"\n", "") +
                               "[[data.mixture]]\npath = \"a \\\"b\\\" \\\\ c\"\nweight = 0.1\n"
                               "[[optimizer.groups]]\nmatch = \"*\"\nwd_mult = 1e-3\n[optimizer.muon]\nscale = "
                               "\"spectral\"\n";
  for (const std::string& text : {std::string(kGood), with_all}) {
    const std::string resolved = resolved_recipe(parse(text, {"optimizer.beta2=auto"}));
    const Recipe again = parse(resolved);
    EXPECT_EQ(resolved_recipe(again), resolved);
    EXPECT_EQ(again.run.name, "quickstart");
    EXPECT_EQ(again.optimizer.beta2, 0.0);
    EXPECT_EQ(recipe_digest(again), recipe_digest(parse(text, {"optimizer.beta2=auto"})));
    EXPECT_TRUE(recipe_changes(again, parse(text, {"optimizer.beta2=auto"}), 0).empty());
  }
  const std::string resolved = resolved_recipe(parse(kGood));
  EXPECT_NE(resolved.find("[mixer.window]\ntype = \"attention\"\nheads = 4\nwindow = 128\n"), std::string::npos)
      << resolved;
  EXPECT_NE(resolved.find("eps = 1e-10\n"), std::string::npos);
}

TEST(ResolvedRecipe, DigestLeavesOutWhatIsFree) {
  const std::string digest = recipe_digest(parse(kGood));
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(recipe_digest(parse(kGood, {"run.name=x", "checkpoint.every=7", "parallel.micro_batch_tokens=1024"})),
            digest);
  EXPECT_NE(recipe_digest(parse(kGood, {"optimizer.clip=0.5"})), digest);
  EXPECT_NE(recipe_digest(parse(kGood, {"mixer.gla.heads=4"})), digest);
}

TEST(ResolvedRecipe, ClassifiesChanges) {
  const Recipe before = parse(kGood);
  const auto effects = [&](const std::vector<std::string>& overrides, std::int64_t step) {
    std::vector<std::pair<std::string, Effect>> list;
    for (const RecipeChange& change : recipe_changes(before, parse(kGood, overrides), step)) {
      list.emplace_back(change.key, change.effect);
    }
    return list;
  };
  using List = std::vector<std::pair<std::string, Effect>>;
  EXPECT_EQ(effects({"log.every=10"}, 5), (List{{"log.every", Effect::free}}));
  EXPECT_EQ(effects({"optimizer.learning_rate=1e-3", "model.width=128"}, 5),
            (List{{"model.width", Effect::incompatible}, {"optimizer.learning_rate", Effect::run}}));
  // The cooldown of 1000 steps begins at 800, that of 2000 steps at 1600.
  EXPECT_EQ(effects({"run.steps=2000"}, 801), (List{{"run.steps", Effect::free}}));
  EXPECT_EQ(effects({"run.steps=2000"}, 802), (List{{"run.steps", Effect::run}}));
  EXPECT_EQ(effects({"run.steps=20000"}, 100), (List{{"run.steps", Effect::run}}));  // turns the spike guard on
  const std::vector<RecipeChange> changes =
      recipe_changes(before, parse(kGood, {"optimizer.groups=[{match=\"*\"}]"}), 5);
  EXPECT_EQ(changes.at(0).key, "optimizer.groups[0].match");
  EXPECT_EQ(changes.at(0).before, "");
  EXPECT_EQ(changes.at(0).after, "\"*\"");
}

TEST(Nearest, FindsSlipsOnly) {
  const std::vector<std::string> words = {"learning_rate", "clip", "schedule", "eps"};
  EXPECT_EQ(nearest("lerning_rate", words), "learning_rate");
  EXPECT_EQ(nearest("Clip", words), "clip");
  EXPECT_EQ(nearest("cilp", words), "clip");
  EXPECT_EQ(nearest("colour", words), "");
  EXPECT_EQ(nearest(std::string(100000, 'x'), words), "");
}

TEST(TomlValue, ShortestTextThatReadsBack) {
  EXPECT_EQ(toml_value(1.0), "1.0");
  EXPECT_EQ(toml_value(1e-10), "1e-10");
  EXPECT_EQ(toml_value(0.1), "0.1");
  EXPECT_EQ(toml_value(-1.0, -1.0), "\"auto\"");
  EXPECT_EQ(toml_value(std::int64_t{-1}, -1.0), "\"auto\"");
  EXPECT_EQ(toml_value(std::vector<std::string>{"a", "b\"\n\x01"}), "[\"a\", \"b\\\"\\n\\u0001\"]");
}

}  // namespace
}  // namespace weft
