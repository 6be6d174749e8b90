// FreeBy: the deleter of a unique_ptr to what a C library frees by a function of its own:
// std::unique_ptr<X509, FreeBy<&X509_free>>.
#pragma once

namespace annulus {

template <auto kFree>
struct FreeBy {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};

}  // namespace annulus
