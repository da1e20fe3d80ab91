#include "pages.hpp"

#include <sys/mman.h>

#include <new>

namespace bitskip {

Pages::Pages(size_t bytes, Size size) : bytes_(bytes) {
    if (bytes == 0) return;
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    data_ = data;
#ifdef MADV_HUGEPAGE
    madvise(data, bytes, size == Size::huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
}

Pages::~Pages() {
    if (data_) munmap(data_, bytes_);
}

}  // namespace bitskip
