// Tokens, which are floats in tiles, as rows of a table.
#pragma once

#include <sstream>
#include <stdexcept>

#include "registers.h"

namespace lthfunc {

// The row of a token.
inline i64 row_of(float token, i64 vocabulary) {
  if (token >= 0.0f && token < static_cast<float>(vocabulary)) return static_cast<i64>(token);
  std::ostringstream message;
  message << "token " << token << " is none of " << vocabulary;
  throw std::out_of_range(message.str());
}

}  // namespace lthfunc
