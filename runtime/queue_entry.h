#ifndef FLASHSVD_RUNTIME_QUEUE_ENTRY_H_
#define FLASHSVD_RUNTIME_QUEUE_ENTRY_H_

#include <cstdint>
#include <memory>

#include "absl/time/time.h"
#include "runtime/request.h"

namespace flashsvd {

// An accepted request inside the batcher: what of it waits and what runs. The batcher's lock guards
// it.
struct QueueEntry {
  std::shared_ptr<Request> request;
  absl::Time submitted;
  absl::Time form_by;  // no batch is held back beyond this
  int64_t bytes = 0;
  int num_sequences = 0;
  int max_seqlen = 0;
  int next_sequence = 0;  // the first one that no batch has taken
  int pieces_in_flight = 0;
  RequestResult result;
  QueueEntry* prev = nullptr;
  QueueEntry* next = nullptr;

  int TokensOf(int first, int count) const {
    const std::vector<int32_t>& offsets = request->input.cu_seqlens;
    return offsets[first + count] - offsets[first];
  }
  int waiting() const { return num_sequences - next_sequence; }
  int waiting_tokens() const { return TokensOf(next_sequence, waiting()); }
};

// A list linked through the entries themselves, so that moving one allocates nothing. Owns none.
struct EntryList {
  QueueEntry* head = nullptr;
  QueueEntry* tail = nullptr;

  void PushBack(QueueEntry* entry) {
    entry->prev = tail;
    entry->next = nullptr;
    (tail == nullptr ? head : tail->next) = entry;
    tail = entry;
  }
  // REQUIRES: the entry is on this list.
  void Remove(QueueEntry* entry) {
    (entry->prev == nullptr ? head : entry->prev->next) = entry->next;
    (entry->next == nullptr ? tail : entry->next->prev) = entry->prev;
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_QUEUE_ENTRY_H_
