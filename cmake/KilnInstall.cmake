# `cmake --install`: programs, static libraries, public headers, documents, and the package that find_package(kiln)
# reads, with the targets kiln::kernels, kiln::cpu and, in whole builds, kiln::nn and kiln::data.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(kiln_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/kiln)
set(kiln_header_dir ${CMAKE_INSTALL_INCLUDEDIR}/kiln)

# Libraries ----------------------------------------------------------------------------------------------------
set(kiln_libraries kernels cpu)
if(KILN_WHOLE)
  list(APPEND kiln_libraries nn data)
endif()
set(kiln_exported kiln_options)
foreach(name IN LISTS kiln_libraries)
  set_target_properties(kiln_${name} PROPERTIES EXPORT_NAME ${name})
  list(APPEND kiln_exported kiln_${name})
endforeach()
set_target_properties(kiln_options PROPERTIES EXPORT_NAME options)
target_include_directories(kiln_options INTERFACE $<INSTALL_INTERFACE:${kiln_header_dir}>)
target_compile_features(kiln_options INTERFACE $<INSTALL_INTERFACE:cxx_std_20>)
install(TARGETS ${kiln_exported} EXPORT kiln_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT kiln_targets FILE kilnTargets.cmake NAMESPACE kiln:: DESTINATION ${kiln_package_dir})

configure_package_config_file(cmake/kilnConfig.cmake.in ${PROJECT_BINARY_DIR}/kilnConfig.cmake
                              INSTALL_DESTINATION ${kiln_package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kilnConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kilnConfig.cmake ${PROJECT_BINARY_DIR}/kilnConfigVersion.cmake
        DESTINATION ${kiln_package_dir})

# Headers: those that need neither CUDA's nor cuDNN's ------------------------------------------------------------
file(GLOB kiln_headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} kernels/common/*.h)
list(FILTER kiln_headers EXCLUDE REGEX "/(check|counters|launch|peer_trial|registry_detail|tensor_map)\\.h$")
foreach(op IN LISTS KILN_ALL_OPS)
  list(APPEND kiln_headers kernels/${op}/${op}.h)
endforeach()
if(KILN_WHOLE)
  file(GLOB engine_headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} nn/*.h data/*.h)
  list(APPEND kiln_headers ${engine_headers})
endif()
foreach(header IN LISTS kiln_headers)
  get_filename_component(folder ${header} DIRECTORY)
  install(FILES ${header} DESTINATION ${kiln_header_dir}/${folder})
endforeach()

# Programs and documents -----------------------------------------------------------------------------------------
foreach(program kiln bench_layers bench_epoch)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endforeach()
install(FILES README.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR})
