# The CUDA backend, for all GPUs from compute capability 8.0 on: machine code for 8.0 and 9.0, and PTX
# for those to come. The runtime is linked statically, so that a program that has it starts on
# machines without a GPU as well.
if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
  set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
endif()
set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
if(ANNULUS_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${ANNULUS_CCACHE})
endif()

# The kernels see plain structs and CUDA's headers only, and are compiled apart from the rest.
file(GLOB cuda_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/attention/cuda/*.cu)
add_library(annulus_cuda_kernels STATIC ${cuda_kernels})
target_include_directories(annulus_cuda_kernels PRIVATE ${PROJECT_SOURCE_DIR})

# Handles and errors of the runtime, for whoever has to do with a GPU.
target_sources(annulus_base PRIVATE ${PROJECT_SOURCE_DIR}/base/cuda/handles.cc)
target_link_libraries(annulus_base PRIVATE CUDA::cudart_static)

file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/attention/cuda/*.cc)
target_sources(annulus_attention PRIVATE ${cuda_sources})
target_link_libraries(annulus_attention PRIVATE annulus_cuda_kernels CUDA::cudart_static
                                                absl::flat_hash_map)

# NCCL comes with the toolkit or beside it. Only benchmark jobs link it: its library is large, and a
# program that serves starts without it.
find_path(ANNULUS_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(ANNULUS_NCCL nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
if(ANNULUS_NCCL_INCLUDE AND ANNULUS_NCCL)
  annulus_library(nccl DIR comm/nccl DEPS annulus_comm PRIVATE ${ANNULUS_NCCL} CUDA::cudart_static)
  target_include_directories(annulus_nccl SYSTEM PRIVATE ${ANNULUS_NCCL_INCLUDE})
endif()

set_source_files_properties(attention/backend.cc PROPERTIES COMPILE_DEFINITIONS ANNULUS_CUDA)
