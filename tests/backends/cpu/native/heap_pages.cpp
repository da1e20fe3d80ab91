// csrc/pages.cpp on the heap, to the byte: there a sanitizer sees what lies behind a buffer.
#include <cstdlib>
#include <cstring>
#include <new>

#include "pages.hpp"

namespace bitskip {

Pages::Pages(size_t bytes, Size) : bytes_(bytes) {
    if (bytes == 0) return;
    data_ = ::operator new(bytes, std::align_val_t(64));
    std::memset(data_, 0, bytes);
}

Pages::~Pages() {
    if (data_) ::operator delete(data_, std::align_val_t(64));
}

}  // namespace bitskip
