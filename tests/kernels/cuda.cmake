# Kernel tests on the CUDA device, run by the suite `cuda` through tests/emulator/run: on the stand-ins, or with
# RETRO_REAL_GPU=1 on hardware.
#
#   label cuda       the tests of test_*.c with --device cuda, and cuda_*.c, under several seeds and checks
#   label mutants    mutants.tsv: copies of the sources with a fault each, which must be caught (emulator only)
set(on_device ${CMAKE_SOURCE_DIR}/tests/emulator/run ${CMAKE_BINARY_DIR})

# cuda_test(NAME [ENV K=V ...] COMMAND ...)
function(cuda_test name)
  cmake_parse_arguments(T "" "" "ENV;COMMAND" ${ARGN})
  add_test(NAME cuda.${name} COMMAND ${on_device} ${T_COMMAND} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(cuda.${name} PROPERTIES LABELS cuda TIMEOUT 900
    ENVIRONMENT "EMU_DEVICES=1;${T_ENV}")
endfunction()

set(bin ${CMAKE_BINARY_DIR}/tests)
cuda_test(attention.bits ENV EMU_SEED=0 COMMAND ${bin}/test_kernels_attention --device cuda --only test_bits*)
cuda_test(attention.first ENV EMU_SEED=2 EMU_UNINIT=1 COMMAND ${bin}/test_kernels_attention --device cuda --only test_first*)
cuda_test(attention.union ENV EMU_SEED=3 EMU_UNINIT=1 COMMAND ${bin}/test_kernels_attention --device cuda --only test_union)
cuda_test(attention.rows ENV EMU_SEED=1 COMMAND ${bin}/test_kernels_attention --device cuda --only test_rows*)
cuda_test(attention.ties ENV EMU_SEED=4 EMU_RACE=2 COMMAND ${bin}/test_kernels_attention --device cuda --only test_ties)
cuda_test(attention.long ENV EMU_SEED=2 EMU_RACE=1 COMMAND ${bin}/test_kernels_attention --device cuda --only test_long*)
cuda_test(attention.pages ENV EMU_SEED=1 EMU_RACE=1 COMMAND ${bin}/test_kernels_attention --device cuda --only test_many*)
set(capability_1 80)
set(capability_2 86) # the least shared memory of all
set(capability_3 90)
set(capability_4 90)
foreach(seed 1 2 3 4)
  set(checks EMU_SEED=${seed} EMU_UNINIT=1 EMU_CAPABILITY=${capability_${seed}})
  math(EXPR race "${seed} % 2 + 1")
  cuda_test(attention.steps.${seed} ENV ${checks} EMU_RACE=${race}
    COMMAND ${bin}/test_kernels_attention --device cuda --only test_steps*)
  cuda_test(ops.${seed} ENV ${checks} EMU_RACE=${race} COMMAND ${bin}/test_kernels_ops --device cuda)
  cuda_test(top_k.${seed} ENV ${checks} EMU_RACE=1 COMMAND ${bin}/cuda_kernels_top_k)
  cuda_test(device.${seed} ENV ${checks} COMMAND ${bin}/cuda_kernels_device)
endforeach()

# Mutants: the faulty object stands before the library that holds the sound one.
if(RETRO_EMULATOR)
  file(STRINGS ${CMAKE_SOURCE_DIR}/tests/kernels/mutants.tsv mutants REGEX "^[a-z]")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/kernels/mutants.tsv)
  set(mutant_targets)
  foreach(line IN LISTS mutants)
    string(REPLACE ";" "\\;" line "${line}")
    string(REPLACE "\t" ";" line "${line}")
    list(GET line 0 name)
    list(GET line 1 source)
    list(GET line 2 program)
    list(GET line 3 only)
    list(GET line 4 expect)
    list(GET line 5 settings)
    list(GET line 6 expression)
    set(folder ${CMAKE_BINARY_DIR}/mutants/${name})
    set(copy ${folder}/kernels/cuda/${source})
    set(compiled ${copy})
    if(source MATCHES "\\.cuh$") # a header's copy is found first by the source that includes it
      set(compiled ${folder}/attend.cu)
      configure_file(${CMAKE_SOURCE_DIR}/kernels/cuda/attend.cu ${compiled} COPYONLY)
      set_source_files_properties(${compiled} PROPERTIES OBJECT_DEPENDS ${copy})
    endif()
    add_custom_command(OUTPUT ${copy}
      COMMAND ${CMAKE_SOURCE_DIR}/tests/kernels/mutate.sh "${expression}" ${CMAKE_SOURCE_DIR}/kernels/cuda/${source} ${copy}
      DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/${source} ${CMAKE_SOURCE_DIR}/tests/kernels/mutate.sh VERBATIM)
    set(target mutant_${name})
    add_executable(${target} EXCLUDE_FROM_ALL tests/kernels/${program}.c ${compiled})
    target_include_directories(${target} BEFORE PRIVATE ${folder})
    target_link_libraries(${target} PRIVATE test_kernels_helpers retro_kernels retro_base PkgConfig::CMOCKA)
    set_target_properties(${target} PROPERTIES LINKER_LANGUAGE C CUDA_ARCHITECTURES 80-virtual
      RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/mutants)
    list(APPEND mutant_targets ${target})
    set(device --device cuda)
    add_test(NAME mutant.${name} COMMAND sh ${CMAKE_SOURCE_DIR}/tests/emulator/tests/must_fail.sh ${expect} ${on_device}
             ${CMAKE_BINARY_DIR}/mutants/${target} ${device} --only ${only} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(mutant.${name} PROPERTIES LABELS mutants TIMEOUT 300 FIXTURES_REQUIRED mutants_build
      ENVIRONMENT "EMU_DEVICES=1;${settings}")
  endforeach()
  add_custom_target(mutants DEPENDS ${mutant_targets})
  add_test(NAME mutants.build COMMAND ${CMAKE_COMMAND} --build ${CMAKE_BINARY_DIR} --target mutants)
  set_tests_properties(mutants.build PROPERTIES LABELS mutants TIMEOUT 900 FIXTURES_SETUP mutants_build)
endif()
