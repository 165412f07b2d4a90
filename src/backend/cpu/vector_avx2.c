/* vector_body.h and attention_body.h for AVX2 with FMA and F16C. */
#include "backend/cpu/vector_table.h"
