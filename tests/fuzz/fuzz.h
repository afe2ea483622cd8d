/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * fuzz - what a fuzzer is: one function that must survive any bytes
 *
 * libFuzzer calls it with what it invents, fuzz-main.c with the files of the corpus.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A promise of the code under test that must hold whatever the input was. */
#define FUZZ_CHECK(cond_)                                                                          \
    do {                                                                                           \
        if (!(cond_)) {                                                                            \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #cond_);                    \
            abort();                                                                               \
        }                                                                                          \
    } while (0)
