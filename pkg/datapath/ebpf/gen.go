package ebpf

// BPF2GO_CC and BPF2GO_STRIP choose the compiler; the committed object is clang 14's.
//go:generate go tool bpf2go -tags linux -target bpfel -type frontends6_key bpf ../../../bpf/lbproxy.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unused-function -mcpu=v3 -nostdinc -I../../../bpf/include
