# What `cmake --install` leaves: the program (component `program`) and the client library as the
# package `annulus` (component `client`), for find_package and for pkg-config.
#
# The client is one shared library that exports what its public headers declare and nothing else
# (annulus_client.map). A static archive would hand gRPC, protobuf and our own internals to every
# user's link line, and two of their versions to whoever links them too; here a user links Abseil,
# whose types are in the interface, and the library may change within without a new build of its
# users. Public structs may still gain fields, so the version 0.x promises the same interface
# within one x only.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(ANNULUS_CLIENT_MAP ${PROJECT_SOURCE_DIR}/deploy/cmake/annulus_client.map)
# What no object of the client calls, and the linker would leave in its archive, is named.
add_library(annulus_client_shared SHARED $<TARGET_OBJECTS:annulus_client> base/list_handle.cc)
set_target_properties(annulus_client_shared PROPERTIES
  OUTPUT_NAME annulus_client EXPORT_NAME client VERSION ${PROJECT_VERSION} SOVERSION 0
  LINK_DEPENDS ${ANNULUS_CLIENT_MAP})
target_compile_features(annulus_client_shared INTERFACE cxx_std_20)
target_include_directories(annulus_client_shared INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_options(annulus_client_shared PRIVATE LINKER:--version-script=${ANNULUS_CLIENT_MAP})
target_link_libraries(annulus_client_shared
  PUBLIC absl::any_invocable absl::cord absl::optional absl::span absl::status absl::statusor
         absl::strings absl::time
  PRIVATE $<BUILD_INTERFACE:annulus_protocol> $<BUILD_INTERFACE:annulus_proto>
          $<BUILD_INTERFACE:annulus_coordinator> $<BUILD_INTERFACE:annulus_worker>)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/annulus)
configure_package_config_file(deploy/cmake/annulusConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/annulusConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/annulusConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
file(RELATIVE_PATH ANNULUS_PC_UP /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(deploy/cmake/annulus.pc.in ${PROJECT_BINARY_DIR}/annulus.pc @ONLY)

install(TARGETS annulus RUNTIME COMPONENT program)
install(TARGETS annulus_client_shared EXPORT annulusTargets
        LIBRARY COMPONENT client NAMELINK_COMPONENT client)
install(EXPORT annulusTargets NAMESPACE annulus:: DESTINATION ${package_dir} COMPONENT client)
install(FILES ${PROJECT_BINARY_DIR}/annulusConfig.cmake
              ${PROJECT_BINARY_DIR}/annulusConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT client)
install(FILES ${PROJECT_BINARY_DIR}/annulus.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT client)
install(DIRECTORY base/api/annulus DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT client)
