package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/pkg/datapath/ebpf"
	"github.com/lbproxy/lbproxy/pkg/datapath/nftables"
)

func newCommand() *cobra.Command {
	var o options
	var cleanup bool
	root := &cobra.Command{
		Use:   "lbproxy",
		Short: "Service load balancing for a Kubernetes node, in place of kube-proxy",
		Long: `lbproxy makes the ClusterIP, NodePort, LoadBalancer and externalIP addresses of Kubernetes Services reach
their backends: at the socket by eBPF, and by nftables for everything a socket hook does not see.

Without a command it runs as the agent of this node, until it is told to stop; what it programmed stays and
keeps working. Services come from the API server, or from files with --manifests.`,
		Example: `  lbproxy --kubeconfig /etc/lbproxy/kubeconfig --cluster-cidr 10.244.0.0/16
  lbproxy --manifests ./examples --proxy-mode nftables
  lbproxy demo`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cleanup {
				return removeAll(&o)
			}
			return runAgent(cmd.Context(), &o)
		},
	}
	o.addInstance(root.PersistentFlags())
	o.addAgent(root.Flags())
	root.Flags().BoolVar(&cleanup, "cleanup", false, "remove everything that lbproxy programmed, and exit")
	root.Flags().SortFlags = false
	root.AddCommand(cleanupCommand(&o), dumpCommand(&o), demoCommand())
	return root
}

func cleanupCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that lbproxy programmed on this node",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return removeAll(o) },
	}
}

// removeAll takes the socket hook away first: sockets opened after that are served by nftables until it goes too.
func removeAll(o *options) error {
	if err := o.validateInstance(); err != nil {
		return err
	}
	if err := needRoot(); err != nil {
		return err
	}
	unlock, err := lockInstance(o)
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(ebpf.Cleanup(o.ebpf(slog.Default())), nftables.Cleanup(o.nftables(slog.Default())))
}

func dumpCommand(o *options) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "dump",
		Short: "Print the frontends and backends that the kernel holds, with or without a running agent",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(o.validateInstance(), needRoot()); err != nil {
				return err
			}
			switch output {
			case "text":
				return dumpText(o, cmd.OutOrStdout())
			case "json":
				return dumpJSON(o, cmd.OutOrStdout())
			}
			return fmt.Errorf("-o %q is not text or json", output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func dumpText(o *options, w io.Writer) error {
	if _, err := fmt.Fprintln(w, "# sockets (eBPF)"); err != nil {
		return err
	}
	err := ebpf.Dump(o.ebpf(slog.Default()), w)
	if _, err := fmt.Fprintln(w, "\n# packets (nftables)"); err != nil {
		return err
	}
	return errors.Join(err, nftables.Dump(o.nftables(slog.Default()), w))
}

func dumpJSON(o *options, w io.Writer) error {
	sockets, err := ebpf.Read(o.ebpf(slog.Default()))
	if err != nil {
		return err
	}
	packets, err := nftables.Read(o.nftables(slog.Default()))
	if err != nil {
		return err
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(map[string]any{"sockets": sockets, "packets": packets})
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("programming the kernel needs root: run it with sudo, or as a privileged container")
	}
	return nil
}
