// Results of driver calls, numbered as in cuda.h.
#pragma once

namespace fake {

using Status = int;

constexpr Status SUCCESS = 0;
constexpr Status INVALID_VALUE = 1;
constexpr Status OUT_OF_MEMORY = 2;
constexpr Status NOT_INITIALIZED = 3;
constexpr Status NO_DEVICE = 100;
constexpr Status INVALID_DEVICE = 101;
constexpr Status INVALID_IMAGE = 200;
constexpr Status INVALID_CONTEXT = 201;
constexpr Status NO_BINARY_FOR_GPU = 209;
constexpr Status INVALID_HANDLE = 400;
constexpr Status NOT_READY = 600;
constexpr Status ILLEGAL_STATE = 401;
constexpr Status NOT_FOUND = 500;
constexpr Status ILLEGAL_ADDRESS = 700;
constexpr Status CONTEXT_IS_DESTROYED = 709;
constexpr Status LAUNCH_FAILED = 719;
constexpr Status NOT_SUPPORTED = 801;
constexpr Status CAPTURE_UNSUPPORTED = 900;
constexpr Status CAPTURE_INVALIDATED = 901;
constexpr Status CAPTURE_UNMATCHED = 903;
constexpr Status CAPTURE_WRONG_THREAD = 908;

} // namespace fake
