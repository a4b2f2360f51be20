#ifndef FLASHSVD_TESTS_TESTING_COUNTING_NEW_H_
#define FLASHSVD_TESTS_TESTING_COUNTING_NEW_H_

#include <atomic>
#include <cstdint>

namespace flashsvd::testing {

// Calls of operator new in this process so far, on any thread. Link counting_new.cc.
int64_t NumAllocations();

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_TESTING_COUNTING_NEW_H_
