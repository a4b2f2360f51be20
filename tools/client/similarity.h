#ifndef FLASHSVD_TOOLS_CLIENT_SIMILARITY_H_
#define FLASHSVD_TOOLS_CLIENT_SIMILARITY_H_

#include <span>
#include <string>
#include <vector>

namespace flashsvd {

// Cosine of the angle between two vectors, summed in double; 0 if one of them is zero.
// REQUIRES: equal lengths.
double Cosine(std::span<const float> a, std::span<const float> b);

// A light-to-dark block for a cosine: " ", "░", "▒", "▓", "█" in steps of 0.2 from 0.
const char* Shade(double cosine);

// The cosines of every pair of rows, shaded, each row labelled with its text. `agreement`, if not
// empty, is a last column titled `agreement_title`.
// REQUIRES: as many texts as rows, and as agreement values, if any.
std::string RenderSimilarity(const std::vector<std::string>& texts,
                             const std::vector<std::vector<float>>& rows,
                             const std::vector<double>& agreement,
                             const std::string& agreement_title);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_SIMILARITY_H_
