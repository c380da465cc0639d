#include "checkpoints/resume.h"

#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/layout.h"
#include "data/storage/json.h"
#include "data/storage/text.h"

namespace weft {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

constexpr std::size_t kMaxMessage = 10'000;

// The outcome on this rank: 0, or the exit code and message of its error.
struct Attempt {
  int code = 0;
  std::string message;
  std::exception_ptr error;
};

template <class F>
Attempt attempt(F&& f) {
  try {
    f();
    return {};
  } catch (const Error& error) {
    return {static_cast<int>(error.code()), error.what(), std::current_exception()};
  } catch (const std::exception& error) {
    return {static_cast<int>(ExitCode::internal), error.what(), std::current_exception()};
  }
}

// All ranks get the worst outcome: an error that ends the search before one that rejects a candidate.
Attempt agree(CheckpointGroup& group, const Attempt& mine) {
  const std::vector<std::string> all =
      group.gather(canonical({{"code", mine.code}, {"message", printable(mine.message, kMaxMessage)}}));
  json verdict = {{"code", 0}, {"message", ""}};
  constexpr int kStorage = static_cast<int>(ExitCode::storage);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    json one = parse_strict(all[rank], "load report");
    const int code = one["code"];
    const int worst = verdict["code"];
    if (code == 0 || (worst != 0 && (worst != kStorage || code == kStorage))) continue;
    if (group.size() > 1) one["message"] = fmt::format("rank {}: {}", rank, one["message"].get<std::string>());
    verdict = std::move(one);
  }
  verdict = parse_strict(group.broadcast(group.rank() == 0 ? canonical(verdict) : std::string()), "load verdict");
  return {verdict["code"], verdict["message"], nullptr};
}

std::vector<std::string> candidates(const fs::path& run, const ResumeRequest& request, CheckpointGroup& group) {
  json message = {{"directories", json::array()}, {"failure", ""}};
  if (group.rank() == 0) {
    if (request.mode == ResumeRequest::Mode::exactly) {
      message["directories"].push_back(request.checkpoint.string());
    } else {
      const Attempt listing = attempt([&] {
        for (const CheckpointEntry& entry : list_checkpoints(run)) {
          message["directories"].push_back(entry.directory.string());
        }
      });
      message["failure"] = printable(listing.message, kMaxMessage);
    }
  }
  message = parse_strict(group.broadcast(group.rank() == 0 ? canonical(message) : std::string()), "candidates");
  if (const std::string failure = message["failure"]; !failure.empty()) storage_error("{}", failure);
  return message["directories"];
}

}  // namespace

std::optional<LoadedCheckpoint> choose_checkpoint(const fs::path& run, const ResumeRequest& request,
                                                  CheckpointGroup& group,
                                                  const std::function<void(const CheckpointReader&)>& load,
                                                  const std::function<void(const std::string&)>& log) {
  if (request.mode == ResumeRequest::Mode::never) return std::nullopt;
  const std::vector<std::string> directories = candidates(run, request, group);
  for (const std::string& directory : directories) {
    LoadedCheckpoint loaded;
    const Attempt mine = attempt([&] {
      using Verify = ResumeRequest::Verify;
      const CheckpointReader reader(directory,
                                    request.verify == Verify::nothing ? BlockChecks::trust : BlockChecks::verify);
      if (request.verify == Verify::files) reader.verify_files(group.rank(), group.size());
      load(reader);
      loaded = {directory, reader.step(), reader.digest()};
    });
    const Attempt verdict = agree(group, mine);
    if (verdict.code == 0) return loaded;
    if (verdict.code != static_cast<int>(ExitCode::storage)) {
      if (mine.error && mine.code == verdict.code) std::rethrow_exception(mine.error);
      throw Error(static_cast<ExitCode>(verdict.code), verdict.message);
    }
    if (request.mode == ResumeRequest::Mode::exactly) {
      storage_error("cannot load checkpoint {}: {}", directory, verdict.message);
    }
    if (group.rank() == 0 && log) log(fmt::format("rejected checkpoint {}: {}", directory, verdict.message));
  }
  if (directories.empty()) return std::nullopt;
  storage_error("no valid checkpoint among the {} in {}; repair them, or move them away to start from scratch",
                directories.size(), checkpoints_directory(run).string());
}

}  // namespace weft
