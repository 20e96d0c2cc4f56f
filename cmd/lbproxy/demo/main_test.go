package demo

import (
	"testing"

	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }
