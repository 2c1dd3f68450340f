package supervisor

func runDaemon() {}
