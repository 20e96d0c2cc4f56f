/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What Go sets before the programs are loaded. The verifier removes the branches that are off. */
#pragma once

#include "types.h"

/* The kernel has bpf_set_retval (5.18), so a hook can refuse with an errno of its choice. */
volatile const bool has_set_retval = false;

/* Cookie of the node's network namespace, 0 if the kernel does not tell it (before 5.14). */
volatile const __u64 host_netns = 0;
