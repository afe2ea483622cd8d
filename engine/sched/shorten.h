/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * shorten - a conversation without its oldest exchanges
 *
 * An exchange is one or more questions of the user and the answers after them. Instructions,
 * wherever they stand, belong to none and stay; the last exchange stays too. So what is left is
 * what a model is used to see: instructions, then turns that begin with a question.
 *
 * Memory: lists of messages are the caller's; texts are borrowed.
 */

#include <stddef.h>

#include "engine/text/chat.h"

/* How many exchanges of @msg [n] may go. */
size_t shorten_most(const struct chat_message *msg, size_t n);

/* What is left of @msg [n] without its @n_exchange oldest exchanges, of which there are as many.
 * @ret:  [n]
 * Return: messages in @ret; the others are the first ones that are no instructions. */
size_t shorten_by(const struct chat_message *msg, size_t n, size_t n_exchange,
                  struct chat_message *ret);
