# Defines kiln_cudnn for the newest cuDNN 9 on the machine: the CUDA toolkit's and the system's folders, and the
# nvidia-cudnn wheel of the Python on PATH are looked at; KILN_CUDNN_ROOT, a folder with include/ and lib/, is taken
# instead where it is set. Header and library come from one root. At run time the library is found again by its rpath,
# and libcudnn.so.9 loads its sub-libraries from its own folder ($ORIGIN), so that all are of one version; the peers
# refuse a library that is older than the header.
set(KILN_CUDNN_ROOT "" CACHE PATH "folder with include/cudnn.h and lib/libcudnn.so.9; empty: the newest found")
if(KILN_CUDNN_ROOT)
  set(candidates ${KILN_CUDNN_ROOT})
else()
  set(candidates ${CUDAToolkit_TARGET_DIR} /usr/local/cuda /usr)
  find_program(kiln_python NAMES python3)
  if(kiln_python)
    execute_process(
      COMMAND ${kiln_python} -c
              "import importlib.util as u; s = u.find_spec('nvidia.cudnn'); print(list(s.submodule_search_locations)[0] if s else '')"
      OUTPUT_VARIABLE kiln_cudnn_wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(APPEND candidates ${kiln_cudnn_wheel})
  endif()
endif()

set(KILN_CUDNN_VERSION 0)
foreach(root IN LISTS candidates)
  foreach(include_dir ${root}/include ${root}/include/x86_64-linux-gnu ${root}/include/aarch64-linux-gnu)
    if(NOT EXISTS ${include_dir}/cudnn_version.h)
      continue()
    endif()
    file(STRINGS ${include_dir}/cudnn_version.h lines REGEX "^#define CUDNN_(MAJOR|MINOR|PATCHLEVEL) +[0-9]+")
    string(REGEX REPLACE "[^0-9;]+" "" numbers "${lines}")
    string(REPLACE ";" "." version "${numbers}")
    file(GLOB libraries ${root}/lib/libcudnn.so.9 ${root}/lib64/libcudnn.so.9 ${root}/lib/*-linux-gnu/libcudnn.so.9)
    if(libraries AND version VERSION_GREATER_EQUAL 9 AND version VERSION_GREATER KILN_CUDNN_VERSION)
      list(GET libraries 0 KILN_CUDNN_LIBRARY)
      set(KILN_CUDNN_VERSION ${version})
      set(KILN_CUDNN_INCLUDE ${include_dir})
    endif()
  endforeach()
endforeach()

if(KILN_CUDNN_VERSION)
  # Not SYSTEM: such folders are searched after the others, and the toolkit's folder may hold another cuDNN's header.
  add_library(kiln_cudnn INTERFACE IMPORTED)  # found again by kilnConfig.cmake
  set_target_properties(kiln_cudnn PROPERTIES SYSTEM OFF)
  target_include_directories(kiln_cudnn INTERFACE ${KILN_CUDNN_INCLUDE})
  target_link_libraries(kiln_cudnn INTERFACE ${KILN_CUDNN_LIBRARY})
  get_filename_component(kiln_cudnn_dir ${KILN_CUDNN_LIBRARY} DIRECTORY)
  list(APPEND CMAKE_BUILD_RPATH ${kiln_cudnn_dir})
endif()
