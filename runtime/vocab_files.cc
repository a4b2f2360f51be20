#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "kernels/status_macros.h"
#include "runtime/json_field.h"
#include "runtime/mapped_file.h"
#include "runtime/tokenizer_files.h"

namespace flashsvd {
namespace {

using Json = nlohmann::json;

// One token a line; its id is the line, counted from 0.
absl::StatusOr<std::vector<std::string>> ReadVocabTxt(const std::string& path) {
  FSVD_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  std::vector<std::string> vocab;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    vocab.emplace_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  while (!vocab.empty() && vocab.back().empty()) vocab.pop_back();
  return vocab;
}

absl::StatusOr<Json> ReadOptionalJson(const std::string& path) {
  absl::StatusOr<Json> json = ReadJsonFile(path);
  if (absl::IsNotFound(json.status())) return Json::object();
  return json;
}

// A token given by its text, or as {"content": text, "lstrip": ...}.
absl::StatusOr<AddedToken> ReadToken(const JsonField& field, bool normalized) {
  AddedToken token;
  const bool is_object = field.has_value() && field.value().is_object();
  FSVD_ASSIGN_OR_RETURN(token.content, (is_object ? field.Member("content") : field).String());
  FSVD_ASSIGN_OR_RETURN(token.single_word, field.Member("single_word").Bool(false));
  FSVD_ASSIGN_OR_RETURN(token.lstrip, field.Member("lstrip").Bool(false));
  FSVD_ASSIGN_OR_RETURN(token.rstrip, field.Member("rstrip").Bool(false));
  FSVD_ASSIGN_OR_RETURN(token.normalized, field.Member("normalized").Bool(normalized));
  return token;
}

absl::Status CheckClass(const JsonField& field) {
  if (!field.has_value()) return absl::OkStatus();
  FSVD_ASSIGN_OR_RETURN(std::string name, field.String());
  constexpr std::string_view kFast = "Fast";
  if (name.ends_with(kFast)) name.resize(name.size() - kFast.size());
  for (const char* known : {"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer",
                            "MobileBertTokenizer", "ConvBertTokenizer"}) {
    if (name == known) return absl::OkStatus();
  }
  return field.Invalid(fmt::format("{} is not supported; \"BertTokenizer\" is", Quoted(name)));
}

class AddedTokenList {
 public:
  explicit AddedTokenList(const std::vector<std::string>& vocab) {
    for (size_t i = 0; i < vocab.size(); ++i) vocab_ids_.emplace(vocab[i], i);
  }

  std::optional<int32_t> VocabId(const std::string& token) const {
    const auto it = vocab_ids_.find(token);
    if (it == vocab_ids_.end()) return std::nullopt;
    return it->second;
  }
  bool Has(const std::string& content) const {
    return std::any_of(tokens_.begin(), tokens_.end(),
                       [&](const AddedToken& token) { return token.content == content; });
  }
  void Add(AddedToken token) { tokens_.push_back(std::move(token)); }
  std::vector<AddedToken> Take() { return std::move(tokens_); }

 private:
  std::map<std::string, int32_t> vocab_ids_;
  std::vector<AddedToken> tokens_;
};

// {"30522": {"content": ..., "lstrip": ...}}, of tokenizer_config.json.
absl::Status ReadAddedTokensDecoder(const JsonField& field, AddedTokenList* list) {
  if (!field.has_value()) return absl::OkStatus();
  FSVD_RETURN_IF_ERROR(field.CheckObject());
  std::map<int32_t, AddedToken> by_id;
  for (const auto& [key, unused] : field.value().items()) {
    const JsonField member = field.Member(key);
    FSVD_RETURN_IF_ERROR(member.CheckObject());
    if (key.empty() || key.size() > 9 || key.find_first_not_of("0123456789") != key.npos) {
      return member.Invalid("the key is no token id");
    }
    FSVD_ASSIGN_OR_RETURN(const bool special, member.Member("special").Bool(false));
    FSVD_ASSIGN_OR_RETURN(AddedToken token, ReadToken(member, !special));
    token.id = std::stoi(key);
    by_id[token.id] = std::move(token);
  }
  for (auto& [id, token] : by_id) list->Add(std::move(token));
  return absl::OkStatus();
}

// {"token": id}, of added_tokens.json.
absl::Status ReadAddedTokensJson(const JsonField& root, AddedTokenList* list) {
  FSVD_RETURN_IF_ERROR(root.CheckObject());
  std::map<int64_t, std::string> by_id;
  for (const auto& [content, unused] : root.value().items()) {
    FSVD_ASSIGN_OR_RETURN(const int64_t id, root.Member(content).Int(0, INT32_MAX));
    by_id[id] = content;
  }
  for (const auto& [id, content] : by_id) {
    if (list->Has(content)) continue;
    AddedToken token;
    token.content = content;
    token.id = static_cast<int32_t>(id);
    token.normalized = true;
    list->Add(std::move(token));
  }
  return absl::OkStatus();
}

// The five special tokens of BERT. `map` is used where `config` lacks one.
absl::Status ReadSpecialTokens(const JsonField& config, const JsonField& map, AddedTokenList* list,
                               WordPieceOptions* options) {
  struct Special {
    const char* field;
    const char* if_missing;
    bool is_required;
  };
  constexpr Special kSpecials[] = {{"unk_token", "[UNK]", true},
                                   {"cls_token", "[CLS]", true},
                                   {"sep_token", "[SEP]", true},
                                   {"pad_token", "[PAD]", false},
                                   {"mask_token", "[MASK]", false}};
  int32_t required_ids[3] = {};
  int num_required = 0;
  for (const Special& special : kSpecials) {
    JsonField field = config.Member(special.field);
    if (!field.has_value() && map.Member(special.field).has_value()) {
      field = map.Member(special.field);
    }
    AddedToken token;
    token.content = special.if_missing;
    if (field.has_value()) {
      FSVD_ASSIGN_OR_RETURN(token, ReadToken(field, /*normalized=*/false));
    }
    const std::optional<int32_t> id = list->VocabId(token.content);
    if (special.is_required) {
      if (!id.has_value()) {
        return field.Invalid(fmt::format("{} is not in vocab.txt", Quoted(token.content)));
      }
      required_ids[num_required++] = *id;
    }
    if (special.field == kSpecials[0].field) options->unk_token = token.content;
    if (!id.has_value() || list->Has(token.content)) continue;
    token.id = *id;
    list->Add(std::move(token));
  }
  SetBertTemplates(required_ids[1], required_ids[2], options);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WordPieceOptions> ReadVocabFiles(const std::string& model_dir) {
  WordPieceOptions options;
  FSVD_ASSIGN_OR_RETURN(options.vocab, ReadVocabTxt(model_dir + "/vocab.txt"));
  const std::string config_path = model_dir + "/tokenizer_config.json";
  FSVD_ASSIGN_OR_RETURN(const Json config_json, ReadJsonFile(config_path));
  const JsonField config(config_path, config_json);
  FSVD_RETURN_IF_ERROR(config.CheckObject());
  const std::string map_path = model_dir + "/special_tokens_map.json";
  FSVD_ASSIGN_OR_RETURN(const Json map_json, ReadOptionalJson(map_path));
  const JsonField map(map_path, map_json);
  FSVD_RETURN_IF_ERROR(map.CheckObject());
  const std::string added_path = model_dir + "/added_tokens.json";
  FSVD_ASSIGN_OR_RETURN(const Json added_json, ReadOptionalJson(added_path));

  FSVD_RETURN_IF_ERROR(CheckClass(config.Member("tokenizer_class")));
  BertNormalizerOptions& normalizer = options.normalizer;
  const auto flag = [&](const char* name, bool if_missing) {
    return config.Member(name).Bool(if_missing);
  };
  FSVD_ASSIGN_OR_RETURN(normalizer.lowercase, flag("do_lower_case", true));
  FSVD_ASSIGN_OR_RETURN(normalizer.strip_accents, flag("strip_accents", normalizer.lowercase));
  FSVD_ASSIGN_OR_RETURN(normalizer.handle_chinese_chars, flag("tokenize_chinese_chars", true));

  AddedTokenList list(options.vocab);
  FSVD_RETURN_IF_ERROR(ReadAddedTokensDecoder(config.Member("added_tokens_decoder"), &list));
  FSVD_RETURN_IF_ERROR(ReadSpecialTokens(config, map, &list, &options));
  FSVD_RETURN_IF_ERROR(ReadAddedTokensJson(JsonField(added_path, added_json), &list));
  options.added_tokens = list.Take();
  return options;
}

}  // namespace flashsvd
