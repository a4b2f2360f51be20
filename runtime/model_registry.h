#ifndef FLASHSVD_RUNTIME_MODEL_REGISTRY_H_
#define FLASHSVD_RUNTIME_MODEL_REGISTRY_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/model.h"
#include "runtime/mutex.h"
#include "runtime/observer.h"

namespace flashsvd {

// A model and the observer that it reports to, which it must not outlive.
struct ServedModel {
  std::shared_ptr<Observer> observer;
  std::shared_ptr<Model> model;
};

// The models that a server offers, by name. Whoever has looked one up keeps it alive. Thread-safe;
// a lookup holds a lock for as long as it takes to find a name and copy two pointers.
class ModelRegistry {
 public:
  // AlreadyExists: a model of this name is there.
  absl::Status Add(ServedModel served);

  // The model `name`; an empty name is the only model. NotFound: no such model. InvalidArgument: no
  // name, and several models. Unavailable: no model has been loaded.
  absl::StatusOr<ServedModel> Find(std::string_view name) const;

  // Ordered by name.
  std::vector<ServedModel> All() const;

  // Forgets all models; each is destroyed, and its engine drained, by whoever holds it last.
  void Clear();

 private:
  std::string Names() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable Mutex mu_;
  std::map<std::string, ServedModel, std::less<>> models_ ABSL_GUARDED_BY(mu_);
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_MODEL_REGISTRY_H_
