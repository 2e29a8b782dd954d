// A goroutine for each connection: blocking code on Go's own poller.
//
// Usage: echo PORT READ_SIZE
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
)

const banner = "Welcome to the server. Type something and hit enter\n"
const prefix = "OK..."

func converse(conn net.Conn, readSize int) {
	defer conn.Close()
	if _, err := conn.Write([]byte(banner)); err != nil {
		return
	}
	buffer := make([]byte, len(prefix)+readSize)
	copy(buffer, prefix)
	for {
		count, err := conn.Read(buffer[len(prefix):])
		if count > 0 {
			if _, err := conn.Write(buffer[:len(prefix)+count]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func fail(why interface{}) {
	fmt.Fprintln(os.Stderr, "echo:", why)
	os.Exit(1)
}

func main() {
	if len(os.Args) != 3 {
		fail("usage: echo PORT READ_SIZE")
	}
	readSize, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fail(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		fail(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			fail(err)
		}
		go converse(conn, readSize)
	}
}
