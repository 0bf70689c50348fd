// Stands for the package `redis` in the example of docs/ingest-messages.md: prints what would be pushed.
export const createClient = () => ({
  connect: async () => ({
    lPush: async (key, value) => console.log(JSON.stringify([key, value])),
    close: async () => {},
  }),
});
