/* vector_body.h and attention_body.h for any CPU: C with 4 lanes, multiply and add unfused. */
#include "backend/cpu/vector_table.h"
