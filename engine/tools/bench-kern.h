/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * bench-kern - how fast the matrix kernels of the bound tier are, beside what this core can do
 */

/* One thread multiplies rows of 2816 columns, from the L2 and from memory, by 1 to 128 rows of
 * activations. Prints the bytes of weights per second of CPU time and the share of the tier's
 * integer peak, and how fast this core only reads, all measured beside each other.
 * @only:   a format's name, or NULL for all; what is no format ends the program
 *
 * Return: 0 or -ENOMEM, and then a sentence was printed. */
int bench_kern(const char *only);
