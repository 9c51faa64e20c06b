// TARGET_BEGIN("...") and TARGET_END: the functions between them may use these instruction sets.
#pragma once

#define EXPERTFLEET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_BEGIN(features) \
  EXPERTFLEET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN(features) _Pragma("GCC push_options") EXPERTFLEET_PRAGMA(GCC target(features))
#define TARGET_END _Pragma("GCC pop_options")
#endif
