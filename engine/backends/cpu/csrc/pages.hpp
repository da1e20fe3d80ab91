// Memory straight from the operating system: zeroed, page-aligned, resident once it is touched.
#pragma once

#include <cstddef>
#include <utility>

namespace bitskip {

class Pages {
public:
    enum class Size { small, huge };

    Pages() = default;
    // `huge` asks for large pages, which spare address translation and cost at most one of slack.
    Pages(size_t bytes, Size size);
    ~Pages();
    Pages(Pages&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Pages& operator=(Pages&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }

    template <class T>
    T* as() const { return static_cast<T*>(data_); }
    size_t bytes() const { return bytes_; }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace bitskip
