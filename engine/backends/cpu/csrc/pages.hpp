// Memory straight from the operating system: zeroed, page-aligned, resident once it is touched.
#pragma once

#include <cstddef>

namespace bitskip {

class Pages {
public:
    enum class Size { small, huge };

    Pages() = default;
    // `huge` asks for large pages, which spare address translation and cost at most one of slack.
    Pages(size_t bytes, Size size);
    ~Pages();
    Pages(Pages&& other) noexcept;
    Pages& operator=(Pages&& other) noexcept;

    template <class T>
    T* as() const { return static_cast<T*>(data_); }
    size_t bytes() const { return bytes_; }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace bitskip
