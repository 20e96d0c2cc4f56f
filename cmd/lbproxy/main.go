// Command lbproxy replaces kube-proxy on a node. Without a subcommand it is the agent.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/lbproxy/lbproxy/test/lab"
)

func main() {
	lab.Main() // a worker process of `lbproxy demo` never returns from here
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lbproxy:", strings.ReplaceAll(err.Error(), "\n", "; "))
		return 1
	}
	return 0
}
