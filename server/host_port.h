#ifndef FLASHSVD_SERVER_HOST_PORT_H_
#define FLASHSVD_SERVER_HOST_PORT_H_

#include <string>

#include "fmt/format.h"

namespace flashsvd {

// "host:port", an IPv6 address in brackets.
inline std::string HostPort(const std::string& host, int port) {
  const bool bare_ipv6 = host.find(':') != std::string::npos && host.front() != '[';
  return bare_ipv6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_HOST_PORT_H_
