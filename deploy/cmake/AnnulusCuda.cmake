# The CUDA backend, for all GPUs from compute capability 8.0 on. Portable kernels are machine code for
# 8.0 and 9.0, and PTX of 8.0 for those to come; those for Hopper use instructions of sm_90a, which
# exist on no other GPU, and are machine code for it alone. The runtime is linked statically, so that a program that has it starts on
# machines without a GPU as well.
if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
  set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
endif()
set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 80-virtual)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
# annulus_cuda_sources(TARGET SPILL_BYTES): ptxas's report of the target's kernels is looked at; the
# build fails if they are not as their sources ask (nvcc_checked.sh).
function(annulus_cuda_sources target spill_bytes)
  set(launcher ${PROJECT_SOURCE_DIR}/deploy/cmake/nvcc_checked.sh ${spill_bytes})
  if(ANNULUS_CCACHE)
    list(APPEND launcher ${ANNULUS_CCACHE})
  endif()
  set_target_properties(${target} PROPERTIES CUDA_COMPILER_LAUNCHER "${launcher}")
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Xptxas;-v>")
endfunction()

# annulus_hopper_sources(TARGET): the target's kernels are for sm_90a.
function(annulus_hopper_sources target)
  annulus_cuda_sources(${target} 0)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES OFF)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_90a,code=sm_90a>")
endfunction()

# The kernels see plain structs and CUDA's headers only, and are compiled apart from the rest.
file(GLOB cuda_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/attention/cuda/*.cu
                                         ${PROJECT_SOURCE_DIR}/attention/cuda/sm80/*.cu)
add_library(annulus_cuda_kernels STATIC ${cuda_kernels})
target_include_directories(annulus_cuda_kernels PRIVATE ${ANNULUS_INCLUDES})
annulus_cuda_sources(annulus_cuda_kernels 96)
file(GLOB hopper_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/attention/cuda/sm90/*.cu
                                           ${PROJECT_SOURCE_DIR}/attention/cuda/sm90/*.cc)
add_library(annulus_hopper_kernels STATIC ${hopper_kernels})
target_include_directories(annulus_hopper_kernels PRIVATE ${ANNULUS_INCLUDES})
target_link_libraries(annulus_hopper_kernels PRIVATE CUDA::cudart_static)
annulus_hopper_sources(annulus_hopper_kernels)

# Handles and errors of the runtime, for whoever has to do with a GPU.
target_sources(annulus_base PRIVATE ${PROJECT_SOURCE_DIR}/base/cuda/handles.cc)
target_link_libraries(annulus_base PRIVATE CUDA::cudart_static)

file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/attention/cuda/*.cc)
target_sources(annulus_attention PRIVATE ${cuda_sources})
target_link_libraries(annulus_attention PRIVATE annulus_cuda_kernels annulus_hopper_kernels CUDA::cudart_static
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
