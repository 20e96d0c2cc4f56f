package nftables

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// A transaction is one sendmsg, so the socket must hold all of it; and the kernel acknowledges every message of it
// before the first acknowledgement is read.
const (
	sendBuffer    = 64 << 20
	receiveBuffer = 16 << 20
)

// dial opens the one socket a datapath uses for its life.
func dial() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		if err := c.SetWriteBuffer(sendBuffer); err != nil {
			return fmt.Errorf("raise the send buffer: %w", err)
		}
		if err := c.SetReadBuffer(receiveBuffer); err != nil {
			return fmt.Errorf("raise the receive buffer: %w", err)
		}
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("open netfilter netlink socket: %w", err)
	}
	return conn, nil
}
