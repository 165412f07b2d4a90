/* vector_body.h and attention_body.h for AVX-512 (F, BW, DQ, VL). */
#include "backend/cpu/vector_table.h"
