#include <limits>
#include <utility>

#include "kernels/status_macros.h"
#include "runtime/json_field.h"
#include "runtime/tokenizer_files.h"

namespace flashsvd {
namespace {

constexpr int64_t kMaxId = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxTypeId = 1023;

absl::Status CheckType(const JsonField& field, std::string_view supported) {
  const JsonField type_field = field.Member("type");
  FSVD_ASSIGN_OR_RETURN(const std::string type, type_field.String());
  if (type == supported) return absl::OkStatus();
  return type_field.Invalid(
      fmt::format("{} is not supported; {} is", Quoted(type), Quoted(supported)));
}

// The tokens by id. REQUIRES of the file: ids 0 to n - 1, each once.
absl::StatusOr<std::vector<std::string>> ReadVocab(const JsonField& field) {
  FSVD_RETURN_IF_ERROR(field.CheckObject());
  const nlohmann::json& vocab = field.value();
  std::vector<const std::string*> by_id(vocab.size());
  for (const auto& [token, id] : vocab.items()) {
    if (!id.is_number_integer()) {
      return field.Invalid(
          fmt::format("{} has for an id {}, not an integer", Quoted(token), JsonTypeName(id)));
    }
    if (!id.is_number_unsigned()) {
      return field.Invalid(fmt::format("{} has the negative id {}", Quoted(token), id.dump()));
    }
    const uint64_t index = id.get<uint64_t>();
    if (index >= by_id.size()) {
      return field.Invalid(fmt::format("{} has id {}, but there are {} tokens: ids have holes",
                                       Quoted(token), index, by_id.size()));
    }
    if (by_id[index] != nullptr) {
      return field.Invalid(
          fmt::format("{} and {} both have id {}", Quoted(*by_id[index]), Quoted(token), index));
    }
    by_id[index] = &token;
  }
  std::vector<std::string> tokens;
  tokens.reserve(by_id.size());
  for (const std::string* token : by_id) tokens.push_back(*token);
  return tokens;
}

absl::Status ReadModel(const JsonField& model, WordPieceOptions* options) {
  FSVD_RETURN_IF_ERROR(model.CheckObject());
  // Old files have no type; no other kind has this field.
  if (model.Member("type").has_value() || !model.Member("max_input_chars_per_word").has_value()) {
    FSVD_RETURN_IF_ERROR(CheckType(model, "WordPiece"));
  }
  FSVD_ASSIGN_OR_RETURN(options->unk_token, model.Member("unk_token").String());
  if (const JsonField prefix = model.Member("continuing_subword_prefix"); prefix.has_value()) {
    FSVD_ASSIGN_OR_RETURN(options->continuing_prefix, prefix.String());
  }
  if (const JsonField max = model.Member("max_input_chars_per_word"); max.has_value()) {
    FSVD_ASSIGN_OR_RETURN(options->max_chars_per_word,
                          max.Int(0, std::numeric_limits<int64_t>::max()));
  }
  FSVD_ASSIGN_OR_RETURN(options->vocab, ReadVocab(model.Member("vocab")));
  for (const std::string& token : options->vocab) {
    if (token == options->unk_token) return absl::OkStatus();
  }
  return model.Member("unk_token")
      .Invalid(fmt::format("{} is not in model.vocab", Quoted(options->unk_token)));
}

absl::Status ReadNormalizer(const JsonField& normalizer, BertNormalizerOptions* options) {
  if (!normalizer.has_value()) {
    *options = {false, false, false, false};
    return absl::OkStatus();
  }
  FSVD_RETURN_IF_ERROR(normalizer.CheckObject());
  FSVD_RETURN_IF_ERROR(CheckType(normalizer, "BertNormalizer"));
  const auto flag = [&](const char* name, bool if_missing) {
    return normalizer.Member(name).Bool(if_missing);
  };
  FSVD_ASSIGN_OR_RETURN(options->clean_text, flag("clean_text", true));
  FSVD_ASSIGN_OR_RETURN(options->handle_chinese_chars, flag("handle_chinese_chars", true));
  FSVD_ASSIGN_OR_RETURN(options->lowercase, flag("lowercase", true));
  FSVD_ASSIGN_OR_RETURN(options->strip_accents, flag("strip_accents", options->lowercase));
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const JsonField& field, std::vector<AddedToken>* added) {
  if (!field.has_value()) return absl::OkStatus();
  FSVD_ASSIGN_OR_RETURN(const std::vector<JsonField> elements, field.Elements());
  for (const JsonField& element : elements) {
    FSVD_RETURN_IF_ERROR(element.CheckObject());
    AddedToken token;
    FSVD_ASSIGN_OR_RETURN(token.content, element.Member("content").String());
    FSVD_ASSIGN_OR_RETURN(const int64_t id, element.Member("id").Int(0, kMaxId));
    token.id = static_cast<int32_t>(id);
    FSVD_ASSIGN_OR_RETURN(const bool special, element.Member("special").Bool(false));
    FSVD_ASSIGN_OR_RETURN(token.single_word, element.Member("single_word").Bool(false));
    FSVD_ASSIGN_OR_RETURN(token.lstrip, element.Member("lstrip").Bool(false));
    FSVD_ASSIGN_OR_RETURN(token.rstrip, element.Member("rstrip").Bool(false));
    FSVD_ASSIGN_OR_RETURN(token.normalized, element.Member("normalized").Bool(!special));
    added->push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const JsonField& field, int64_t num_tokens) {
  FSVD_ASSIGN_OR_RETURN(const std::vector<JsonField> elements, field.Elements());
  std::vector<int32_t> ids;
  for (const JsonField& element : elements) {
    FSVD_ASSIGN_OR_RETURN(const int64_t id, element.Int(0, num_tokens - 1));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

absl::StatusOr<EncodingTemplate> ReadTemplate(const JsonField& field, const JsonField& special,
                                              bool is_pair, int64_t num_tokens) {
  FSVD_ASSIGN_OR_RETURN(const std::vector<JsonField> elements, field.Elements());
  EncodingTemplate pieces;
  bool has_first = false, has_second = false;
  for (const JsonField& element : elements) {
    const JsonField token = element.Member("SpecialToken");
    const JsonField sequence = element.Member("Sequence");
    if (token.has_value() == sequence.has_value()) {
      return element.Invalid("expected an object with either SpecialToken or Sequence");
    }
    const JsonField& member = token.has_value() ? token : sequence;
    FSVD_ASSIGN_OR_RETURN(const std::string id, member.Member("id").String());
    FSVD_ASSIGN_OR_RETURN(const int64_t type_id, member.Member("type_id").Int(0, kMaxTypeId));
    TemplatePiece piece;
    piece.type_id = static_cast<int32_t>(type_id);
    if (token.has_value()) {
      if (!special.Member(id).has_value()) {
        return token.Member("id").Invalid(
            fmt::format("{} is not in post_processor.special_tokens", Quoted(id)));
      }
      piece.kind = TemplatePiece::Kind::kSpecialTokens;
      FSVD_ASSIGN_OR_RETURN(piece.ids, ReadIds(special.Member(id).Member("ids"), num_tokens));
    } else if (id == "A") {
      has_first = true;
    } else if (id == "B" && is_pair) {
      piece.kind = TemplatePiece::Kind::kSecondText;
      has_second = true;
    } else {
      return sequence.Member("id").Invalid(fmt::format("{} is no text", Quoted(id)));
    }
    pieces.push_back(std::move(piece));
  }
  if (!has_first || has_second != is_pair) {
    return field.Invalid(is_pair ? "expected Sequences A and B" : "expected Sequence A");
  }
  return pieces;
}

// {"type": "BertProcessing", "cls": ["[CLS]", 101], "sep": ["[SEP]", 102]}
absl::Status ReadBertProcessing(const JsonField& processor, int64_t num_tokens,
                                WordPieceOptions* options) {
  int32_t ids[2];
  constexpr const char* kNames[2] = {"cls", "sep"};
  for (int i = 0; i < 2; ++i) {
    const JsonField field = processor.Member(kNames[i]);
    FSVD_ASSIGN_OR_RETURN(const std::vector<JsonField> elements, field.Elements());
    if (elements.size() != 2) return field.Invalid("expected a token and its id");
    FSVD_ASSIGN_OR_RETURN(const int64_t id, elements[1].Int(0, num_tokens - 1));
    ids[i] = static_cast<int32_t>(id);
  }
  SetBertTemplates(ids[0], ids[1], options);
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const JsonField& processor, WordPieceOptions* options) {
  if (!processor.has_value()) return absl::OkStatus();
  FSVD_RETURN_IF_ERROR(processor.CheckObject());
  const auto num_tokens =
      static_cast<int64_t>(options->vocab.size() + options->added_tokens.size());
  FSVD_ASSIGN_OR_RETURN(const std::string type, processor.Member("type").String());
  if (type == "BertProcessing") return ReadBertProcessing(processor, num_tokens, options);
  FSVD_RETURN_IF_ERROR(CheckType(processor, "TemplateProcessing"));
  const JsonField special = processor.Member("special_tokens");
  FSVD_RETURN_IF_ERROR(special.CheckObject());
  FSVD_ASSIGN_OR_RETURN(options->single,
                        ReadTemplate(processor.Member("single"), special, false, num_tokens));
  FSVD_ASSIGN_OR_RETURN(options->pair,
                        ReadTemplate(processor.Member("pair"), special, true, num_tokens));
  return absl::OkStatus();
}

}  // namespace

void SetBertTemplates(int32_t cls_id, int32_t sep_id, WordPieceOptions* options) {
  using Kind = TemplatePiece::Kind;
  options->single = {{Kind::kSpecialTokens, 0, {cls_id}},
                     {Kind::kFirstText, 0, {}},
                     {Kind::kSpecialTokens, 0, {sep_id}}};
  options->pair = options->single;
  options->pair.push_back({Kind::kSecondText, 1, {}});
  options->pair.push_back({Kind::kSpecialTokens, 1, {sep_id}});
}

absl::StatusOr<WordPieceOptions> ReadTokenizerJson(const std::string& path) {
  FSVD_ASSIGN_OR_RETURN(const nlohmann::json json, ReadJsonFile(path));
  const JsonField root(path, json);
  FSVD_RETURN_IF_ERROR(root.CheckObject());
  WordPieceOptions options;
  FSVD_RETURN_IF_ERROR(ReadModel(root.Member("model"), &options));
  FSVD_RETURN_IF_ERROR(ReadNormalizer(root.Member("normalizer"), &options.normalizer));
  const JsonField pre_tokenizer = root.Member("pre_tokenizer");
  FSVD_RETURN_IF_ERROR(pre_tokenizer.CheckObject());
  FSVD_RETURN_IF_ERROR(CheckType(pre_tokenizer, "BertPreTokenizer"));
  FSVD_RETURN_IF_ERROR(ReadAddedTokens(root.Member("added_tokens"), &options.added_tokens));
  FSVD_RETURN_IF_ERROR(ReadPostProcessor(root.Member("post_processor"), &options));
  return options;
}

}  // namespace flashsvd
