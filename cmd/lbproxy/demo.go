package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/cmd/lbproxy/demo"
)

func demoCommand() *cobra.Command {
	var mode, output string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show real connections through both datapaths, in a world of network namespaces that is removed afterwards",
		Long: `demo builds a small world in network namespaces (a node with pods, a second node, a client outside), runs the
agent in it on the Services of examples/, dials all of them from everywhere over IPv4 and IPv6, shows who
answered, and changes the Services while connections run. The machine's own network is not touched, and
everything is removed at the end. It takes about 20 seconds and exits with 1 if anything went wrong.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			modes, err := demoModes(mode)
			if err != nil {
				return err
			}
			if output != "text" && output != "json" {
				return fmt.Errorf("-o %q is not text or json", output)
			}
			if os.Geteuid() != 0 {
				return errors.New("the demo needs root for its network namespaces: run it with sudo")
			}
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find own program: %w", err)
			}
			o := demo.Options{Modes: modes, Program: program, Out: cmd.OutOrStdout(), JSON: output == "json", Progress: os.Stderr}
			if f, ok := o.Out.(*os.File); ok {
				o.Style = demo.StyleOf(f)
			}
			// A closed terminal, or a pipe that nobody reads any more, is a reason to stop and clean up like Ctrl-C. A second
			// signal must not end the process while it does; so this is never undone.
			ctx, _ := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
			return demo.Run(ctx, o)
		},
	}
	c.Flags().StringVar(&mode, "proxy-mode", "", "show one mode alone: auto, ebpf or nftables (default: auto and nftables side by side)")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func demoModes(mode string) ([]string, error) {
	switch mode {
	case "":
		return []string{modeAuto, modeNFTables}, nil
	case modeAuto, modeEBPF, modeNFTables:
		return []string{mode}, nil
	}
	return nil, fmt.Errorf("--proxy-mode %q is not auto, ebpf or nftables", mode)
}
