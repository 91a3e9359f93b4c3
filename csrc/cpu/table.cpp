// One instruction set's table of kernels.
#include "kernels.h"
#include "simd.h"

#define HSTA_STRING(x) #x
#define HSTA_NAME(x) HSTA_STRING(x)

namespace hsta {
namespace HSTA_ISA {

void space_time_attention_forward(const SpaceTimeAttention&);
void space_time_attention_backward(const SpaceTimeAttention&);
void cross_modal_attention_forward(const CrossModalAttention&);
void cross_modal_attention_backward(const CrossModalAttention&);
void cross_modal_absorb_query(const CrossModalProjections&);
void cross_modal_project_values(const CrossModalProjections&);
void add_layer_norm_forward(const AddLayerNorm&);
void add_layer_norm_backward(const AddLayerNorm&);
void bias_gelu_forward(const BiasGelu&);
void bias_gelu_backward(const BiasGelu&);

static void exp2_array(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    float lanes[kLanes] = {};
    for (int64_t j = 0; j < n; ++j) lanes[j] = x[i + j];
    store(lanes, exp2(load(lanes)));
    for (int64_t j = 0; j < n; ++j) y[i + j] = lanes[j];
  }
}

extern const KernelTable table;
const KernelTable table = {HSTA_NAME(HSTA_ISA),
                           space_time_attention_forward,
                           space_time_attention_backward,
                           cross_modal_attention_forward,
                           cross_modal_attention_backward,
                           cross_modal_absorb_query,
                           cross_modal_project_values,
                           add_layer_norm_forward,
                           add_layer_norm_backward,
                           bias_gelu_forward,
                           bias_gelu_backward,
                           exp2_array};

}  // namespace HSTA_ISA
}  // namespace hsta
