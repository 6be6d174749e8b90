# The few kinds of target that Annulus has. A folder without sources yet makes an interface target,
# so that the layers can be named from the start.

# Sources are included by their path in the tree, the client's public headers as its users do.
set(ANNULUS_INCLUDES ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/base/api)

# annulus_library(NAME [DIR folder] [SUBDIRS a b] [DEPS public…] [PRIVATE private…])
# All *.cc directly in the folder (and in the named subfolders) make the static library annulus_NAME.
function(annulus_library name)
  cmake_parse_arguments(ARG "" "DIR" "SUBDIRS;DEPS;PRIVATE" ${ARGN})
  if(NOT ARG_DIR)
    set(ARG_DIR ${name})
  endif()
  if(NOT ARG_SUBDIRS)
    set(ARG_SUBDIRS .)
  endif()
  set(globs)
  foreach(sub ${ARG_SUBDIRS})
    list(APPEND globs ${PROJECT_SOURCE_DIR}/${ARG_DIR}/${sub}/*.cc)
  endforeach()
  file(GLOB sources CONFIGURE_DEPENDS ${globs})
  if(sources)
    add_library(annulus_${name} STATIC ${sources})
    set(kind PUBLIC)
    target_link_libraries(annulus_${name} PRIVATE ${ARG_PRIVATE})
  else()
    add_library(annulus_${name} INTERFACE)
    set(kind INTERFACE)
    target_link_libraries(annulus_${name} INTERFACE ${ARG_PRIVATE})
  endif()
  target_include_directories(annulus_${name} ${kind} ${ANNULUS_INCLUDES})
  target_compile_features(annulus_${name} ${kind} cxx_std_20)
  target_link_libraries(annulus_${name} ${kind} ${ARG_DEPS})
endfunction()

# annulus_proto(NAME files…): protobuf and gRPC sources of the files in one library; headers are
# included by the path of their .proto.
function(annulus_proto name)
  find_program(PROTOC protoc REQUIRED)
  find_program(GRPC_PLUGIN grpc_cpp_plugin REQUIRED)
  set(out ${PROJECT_BINARY_DIR}/proto)
  file(MAKE_DIRECTORY ${out})
  set(generated)
  foreach(file ${ARGN})
    if(NOT EXISTS ${PROJECT_SOURCE_DIR}/${file})
      continue()
    endif()
    string(REGEX REPLACE "\\.proto$" "" stem ${file})
    add_custom_command(
      OUTPUT ${out}/${stem}.pb.cc ${out}/${stem}.pb.h ${out}/${stem}.grpc.pb.cc
             ${out}/${stem}.grpc.pb.h
      COMMAND ${PROTOC} -I ${PROJECT_SOURCE_DIR} --cpp_out=${out} --grpc_out=${out}
              --plugin=protoc-gen-grpc=${GRPC_PLUGIN} ${PROJECT_SOURCE_DIR}/${file}
      DEPENDS ${PROJECT_SOURCE_DIR}/${file}
      VERBATIM)
    list(APPEND generated ${out}/${stem}.pb.cc ${out}/${stem}.grpc.pb.cc)
  endforeach()
  if(generated)
    add_library(annulus_${name} STATIC ${generated})
    target_include_directories(annulus_${name} SYSTEM PUBLIC ${out})
    target_link_libraries(annulus_${name} PUBLIC protobuf::libprotobuf gRPC::grpc++)
  else()
    add_library(annulus_${name} INTERFACE)
  endif()
endfunction()

# annulus_program(NAME source DEPS…)
function(annulus_program name source)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  if(EXISTS ${PROJECT_SOURCE_DIR}/${source})
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  endif()
endfunction()

# annulus_test(AREA DEPS…): tests/AREA/*_test.cc make one Catch2 program, each case a CTest test
# named AREA.case.
function(annulus_test area)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${area}/*.cc)
  if(sources)
    add_executable(test_${area} ${sources})
    target_link_libraries(test_${area} PRIVATE annulus_test_main ${ARG_DEPS})
    catch_discover_tests(test_${area} TEST_PREFIX "${area}." EXTRA_ARGS ${ANNULUS_NO_CASE_FAILS}
                         PROPERTIES TIMEOUT 300)
  endif()
endfunction()

# What ranks of MPI jobs need in tests. CI is root. Open MPI 4 says nothing of its own about a job
# that fails; 5 does not know the variable. Open MPI keeps memory of plugins that it has unloaded at
# its end, which the leak sanitizer cannot be told to overlook.
set(ANNULUS_MPI_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_orte_execute_quiet=1 ASAN_OPTIONS=detect_leaks=0)

# annulus_mpi_test(NAME RANKS command…): one MPI job as a CTest test, of more ranks than cores if
# need be.
function(annulus_mpi_test name ranks)
  add_test(NAME ${name} COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe
                                ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${ARGN})
  set_tests_properties(${name} PROPERTIES TIMEOUT 300 PROCESSORS 2 ENVIRONMENT
                       "${ANNULUS_MPI_ENVIRONMENT}")
endfunction()

# annulus_headers(FOLDERS folders… DEPS…): the target annulus_headers compiles every header of the
# folders on its own. Not part of a normal build; `./dev check` asks for it. Headers named *-inl.h
# are bodies that Highway includes once per SIMD target and cannot stand alone.
function(annulus_headers)
  cmake_parse_arguments(ARG "" "" "FOLDERS;DEPS" ${ARGN})
  set(sources)
  foreach(folder ${ARG_FOLDERS})
    file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}
         ${PROJECT_SOURCE_DIR}/${folder}/*.h)
    list(FILTER headers EXCLUDE REGEX "-inl\\.h$")
    if(NOT ANNULUS_CUDA)
      list(FILTER headers EXCLUDE REGEX "^(attention/cuda|base/cuda|bench/gpu|comm/nccl|tests/gpu|tests/nccl)/")
    endif()
    foreach(header ${headers})
      set(source ${PROJECT_BINARY_DIR}/headers/${header}.cc)
      file(CONFIGURE OUTPUT ${source} CONTENT "#include \"${header}\"\n")
      list(APPEND sources ${source})
    endforeach()
  endforeach()
  add_library(annulus_headers OBJECT EXCLUDE_FROM_ALL ${sources})
  target_include_directories(annulus_headers PRIVATE ${ANNULUS_INCLUDES})
  target_link_libraries(annulus_headers PRIVATE ${ARG_DEPS})
endfunction()
