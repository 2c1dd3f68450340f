driver "native" {
  chain_timeout = "2 minutes"
  ready_timeout = "-1s"
}
