/* Whole-row arithmetic for sampling: maxima, exponentials and sums over a vocabulary, in a fixed order that does
 * not depend on the compiler's choices (vectors of 4 lanes, lanes combined pairwise). Private to sample/.
 * Thread: any. */
#ifndef QR_SAMPLE_ROW_H
#define QR_SAMPLE_ROW_H

#include <stdint.h>

#define ROW_BLOCK 512 /* values whose sum is kept, so that a draw skips whole blocks */

/* Copies the row, NaN becoming -inf. */
void row_copy(const float *from, float *to, int32_t count);
/* The largest value (-inf when there is none); NaN is ignored. */
float row_max(const float *row, int32_t count);
/* Lowest index of the largest value, or -1 when no value is above -inf. */
int32_t row_argmax(const float *row, int32_t count);
/* out[i] = exp((row[i] - shift) * scale); block_sums[b] = sum of block b, returns the total. out may be row. */
double row_exp(const float *row, int32_t count, float shift, float scale, float *out, double *block_sums);
/* log(sum(exp(row))). */
double row_log_sum_exp(const float *row, int32_t count, float max);
/* How many values are greater. */
int32_t row_count_greater(const float *row, int32_t count, float value);

#endif
