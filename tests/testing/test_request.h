#ifndef FLASHSVD_TESTS_TESTING_TEST_REQUEST_H_
#define FLASHSVD_TESTS_TESTING_TEST_REQUEST_H_

#include <atomic>
#include <latch>
#include <memory>
#include <string>
#include <vector>

#include "runtime/request.h"

namespace flashsvd {

// A request whose outcome a test can look at. Must outlive the request's `done`.
class TestRequest {
 public:
  // Sequences of these lengths; token ids count up from first_id.
  TestRequest(std::string name, const std::vector<int>& lengths, int first_id = 0, int hidden = 1)
      : name_(std::move(name)),
        rows_(lengths.size() * hidden, -1.0f),
        request_(std::make_shared<Request>()) {
    std::vector<int32_t> ids;
    for (const int length : lengths) {
      ids.clear();
      for (int i = 0; i < length; ++i) ids.push_back(first_id++);
      request_->input.Append(ids, std::vector<int32_t>(length, 0));
    }
    request_->output = reinterpret_cast<std::byte*>(rows_.data());
    request_->row_stride_bytes = sizeof(float) * hidden;
    request_->done = [this](const RequestResult& result) {
      if (runs_.fetch_add(1) == 0) {
        result_ = result;
        over_.count_down();
      }
    };
  }
  TestRequest(const TestRequest&) = delete;

  const std::string& name() const { return name_; }
  const std::shared_ptr<Request>& request() const { return request_; }
  Request* operator->() const { return request_.get(); }
  // How often `done` has run.
  int runs() const { return runs_.load(); }
  // Blocks until `done` has run.
  const RequestResult& Wait() const {
    over_.wait();
    return result_;
  }
  // REQUIRES: `done` has run.
  const RequestResult& result() const { return result_; }
  const std::vector<float>& rows() const { return rows_; }

 private:
  const std::string name_;
  std::vector<float> rows_;
  std::shared_ptr<Request> request_;
  std::atomic<int> runs_{0};
  RequestResult result_;
  mutable std::latch over_{1};
};

}  // namespace flashsvd

#endif  // FLASHSVD_TESTS_TESTING_TEST_REQUEST_H_
