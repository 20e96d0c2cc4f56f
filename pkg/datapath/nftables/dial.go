package nftables

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// A transaction is one sendmsg, so the socket must hold all of it; and the kernel acknowledges every message of it
// before the first acknowledgement is read.
const (
	sendBuffer    = 64 << 20
	receiveBuffer = 16 << 20
)

// patience is how long the kernel may take to acknowledge a transaction.
const patience = 30 * time.Second

// conn is the one socket a datapath writes through.
type conn struct {
	*nftables.Conn
	socket *netlink.Conn
}

func dial() (*conn, error) {
	c := &conn{}
	return c, c.open()
}

func (c *conn) open() (err error) {
	c.Conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
		c.socket = s
		if err := s.SetWriteBuffer(sendBuffer); err != nil {
			return fmt.Errorf("raise the send buffer: %w", err)
		}
		if err := s.SetReadBuffer(receiveBuffer); err != nil {
			return fmt.Errorf("raise the receive buffer: %w", err)
		}
		return nil
	}))
	if err != nil {
		return fmt.Errorf("open netfilter netlink socket: %w", err)
	}
	return nil
}

// flush sends the transaction and waits for its end. The library waits for one acknowledgement for every message, which do
// not all come after some failures: hence the deadline. What is still to come would be taken for the answer to
// the next transaction: hence a new socket after a failure.
func (c *conn) flush() error {
	if err := c.socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	err := c.Flush()
	if err != nil {
		return errors.Join(err, c.close(), c.open())
	}
	return nil
}

func (c *conn) close() error { return c.CloseLasting() }
